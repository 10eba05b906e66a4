"""What the bundled tasks ask of the bundled model: `python -m lrbench.models.almanac.questions` writes the documents.

Everything is drawn from the world and the corpus with the same seed as the training text, so the files in
`lrbench/tasks/almanac/` can be made again byte for byte. Nothing asked was ever trained in the words it is asked in:
facts are asked in the paraphrases `ASKED`, agreement with held-out noun pairs, arithmetic with held-out numbers.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from lrbench.models.almanac.corpus import Corpus
from lrbench.models.almanac.world import ASKED, SEED, TEMPLATES, Fact, World

FACTS = 200  # of each third
PAIRS = 200
SUMS = 200
TEXTS = 100
RECALLED = 50  # of each third
THIRDS = ("frequent", "middle", "rare")
NEAR = (-1, 1, -2, 2, -10, 10)  # from a result to its distractors

Document = dict[str, Any]
T = TypeVar("T")


def documents(corpus: Corpus) -> dict[str, list[Document]]:
    """Every document of every bundled task, by name of its file (without `.jsonl`)."""
    trained = Counter(fact for _, facts in corpus.training() for fact in facts)
    out = {f"facts_{third}": asked_facts(corpus.world, corpus.seed, index, trained)
           for index, third in enumerate(THIRDS)}  # fmt: skip
    out["agreement"] = minimal_pairs(corpus)
    out["arithmetic"] = sums(corpus)
    out["text"] = [{"text": text} for text in _first(TEXTS, _distinct(corpus.held_out(10 * TEXTS)))]
    out["recall"] = recalled_facts(corpus.world, corpus.seed, trained)
    return out


def asked_facts(world: World, seed: int, third: int, trained: Counter[Fact]) -> list[Document]:
    """Four-way questions on facts of one frequency third; the distractors are answers to the same relation.

    `trained` is how many training documents state a fact.
    """
    draw = random.Random(f"facts-{THIRDS[third]}-{seed}")
    out = []
    for fact in draw.sample(_askable(world, third), FACTS):
        question = _question(fact, draw)
        choices, gold = _shuffled(fact.answer, _others(world.pools[fact.relation], fact.answer, draw), draw)
        out.append({"question": question, "choices": choices, "gold": gold, "subject": fact.subject,
                    "relation": fact.relation, "third": THIRDS[third], "trained": trained[fact]})  # fmt: skip
    return out


def recalled_facts(world: World, seed: int, trained: Counter[Fact]) -> list[Document]:
    """Facts of all thirds whose answer the model must write itself."""
    draw = random.Random(f"recall-{seed}")
    out = []
    for third, name in enumerate(THIRDS):
        for fact in draw.sample(_askable(world, third), RECALLED):
            out.append({"question": _question(fact, draw), "answer": fact.answer, "subject": fact.subject,
                        "relation": fact.relation, "third": name, "trained": trained[fact]})  # fmt: skip
    return out


def minimal_pairs(corpus: Corpus) -> list[Document]:
    """Two sentences that differ in the number of their verb, with noun pairs never trained.

    Their order is drawn too: `argmax` breaks ties downwards, and a model that has collapsed should not win by it.
    """
    draw = random.Random(f"agreement-{corpus.seed}")
    pairs = _distinct(corpus.agreement(draw, corpus.held_nouns) for _ in range(100 * PAIRS))
    out = []
    for good, bad in _first(PAIRS, pairs):
        choices, gold = _shuffled(good, [bad], draw)
        out.append({"choices": choices, "gold": gold})
    return out


def sums(corpus: Corpus) -> list[Document]:
    """Four-way sums and differences of number pairs never trained; the distractors are near misses."""
    draw = random.Random(f"arithmetic-{corpus.seed}")
    sentences = _distinct(corpus.arithmetic(draw, corpus.held_numbers) for _ in range(100 * SUMS))
    out = []
    for sentence, result in _first(SUMS, sentences):
        near = [str(result + step) for step in NEAR if result + step >= 0]
        choices, gold = _shuffled(str(result), draw.sample(near, 3), draw)
        out.append({"question": sentence.removesuffix(f" {result}."), "choices": choices, "gold": gold})
    return out


def write(folder: Path, corpus: Corpus) -> None:
    """Writes one JSON lines file a task."""
    for name, rows in documents(corpus).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")


def _askable(world: World, third: int) -> list[Fact]:
    return [fact for fact in world.thirds()[third] if fact.subject in world.asked]


def _question(fact: Fact, draw: random.Random) -> str:
    """A paraphrase kept out of training, up to the answer."""
    template = TEMPLATES[fact.relation][draw.choice(ASKED)]
    return template.removesuffix(" {a}.").format(s=fact.subject)


def _others(pool: list[str], answer: str, draw: random.Random) -> list[str]:
    return draw.sample([other for other in pool if other != answer], 3)


def _shuffled(right: str, wrong: list[str], draw: random.Random) -> tuple[list[str], int]:
    """All choices in random order, and where the right one stands."""
    choices = [right, *wrong]
    draw.shuffle(choices)
    return choices, choices.index(right)


def _distinct(items: Iterable[T]) -> Iterator[T]:
    return iter(dict.fromkeys(items))


def _first(count: int, items: Iterator[T]) -> list[T]:
    return [item for _, item in zip(range(count), items, strict=False)]


def main() -> None:
    """Writes the documents into the installed package."""
    write(Path(str(files("lrbench.tasks") / "almanac")), Corpus(SEED))


if __name__ == "__main__":
    main()
