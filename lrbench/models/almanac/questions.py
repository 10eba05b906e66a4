"""The documents of the bundled tasks; `python -m lrbench.models.almanac.questions` writes them.

They are drawn from the world and the corpus with the seed of the training text, so that the files in
`lrbench/tasks/almanac/` are reproducible byte for byte. No question occurs in the training text: facts are asked in the
paraphrases `HELD_OUT`, agreement with held-out noun pairs, arithmetic with held-out numbers.
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
from lrbench.models.almanac.world import HELD_OUT, SEED, TEMPLATES, Fact, World

FACTS = 200  # questions on each third of the facts
PAIRS = 200
SUMS = 200
TEXTS = 100
RECALLED = 50  # recall questions on each third of the facts
THIRDS = ("frequent", "middle", "rare")
NEAR = (-1, 1, -2, 2, -10, 10)  # differences of distractors from the result

Document = dict[str, Any]
T = TypeVar("T")


def documents(corpus: Corpus) -> dict[str, list[Document]]:
    """File name without `.jsonl` -> documents, for all bundled tasks."""
    trained = Counter(fact for _, facts in corpus.training() for fact in facts)
    out = {f"facts_{third}": fact_questions(corpus.world, corpus.seed, index, trained)
           for index, third in enumerate(THIRDS)}  # fmt: skip
    out["agreement"] = minimal_pairs(corpus)
    out["arithmetic"] = sums(corpus)
    out["text"] = [{"text": text} for text in _first(TEXTS, _distinct(corpus.held_out(10 * TEXTS)))]
    out["recall"] = recall_questions(corpus.world, corpus.seed, trained)
    return out


def fact_questions(world: World, seed: int, third: int, trained: Counter[Fact]) -> list[Document]:
    """Questions with four choices on facts of a frequency third; distractors are other answers of the relation.

    Args:
        third: index into `THIRDS`.
        trained: fact -> the number of training documents that state it.
    """
    draw = random.Random(f"facts-{THIRDS[third]}-{seed}")
    out = []
    for fact in draw.sample(_question_facts(world, third), FACTS):
        question = _question(fact, draw)
        choices, gold = _shuffled(fact.answer, _distractors(world.pools[fact.relation], fact.answer, draw), draw)
        out.append({"question": question, "choices": choices, "gold": gold, "subject": fact.subject,
                    "relation": fact.relation, "third": THIRDS[third], "trained": trained[fact]})  # fmt: skip
    return out


def recall_questions(world: World, seed: int, trained: Counter[Fact]) -> list[Document]:
    """Questions on facts of all thirds, to which the model generates the answer."""
    draw = random.Random(f"recall-{seed}")
    out = []
    for third, name in enumerate(THIRDS):
        for fact in draw.sample(_question_facts(world, third), RECALLED):
            out.append({"question": _question(fact, draw), "answer": fact.answer, "subject": fact.subject,
                        "relation": fact.relation, "third": name, "trained": trained[fact]})  # fmt: skip
    return out


def minimal_pairs(corpus: Corpus) -> list[Document]:
    """Pairs of sentences that differ only in the agreement of the verb, with held-out noun pairs.

    The order is random: `argmax` takes the first of equal scores, from which a collapsed model must not profit.
    """
    draw = random.Random(f"agreement-{corpus.seed}")
    pairs = _distinct(corpus.agreement(draw, corpus.held_nouns) for _ in range(100 * PAIRS))
    out = []
    for good, bad in _first(PAIRS, pairs):
        choices, gold = _shuffled(good, [bad], draw)
        out.append({"choices": choices, "gold": gold})
    return out


def sums(corpus: Corpus) -> list[Document]:
    """Sums and differences of held-out number pairs, with four choices; distractors are close to the result."""
    draw = random.Random(f"arithmetic-{corpus.seed}")
    sentences = _distinct(corpus.arithmetic(draw, corpus.held_numbers) for _ in range(100 * SUMS))
    out = []
    for sentence, result in _first(SUMS, sentences):
        near = [str(result + step) for step in NEAR if result + step >= 0]
        choices, gold = _shuffled(str(result), draw.sample(near, 3), draw)
        out.append({"question": sentence.removesuffix(f" {result}."), "choices": choices, "gold": gold})
    return out


def write(folder: Path, corpus: Corpus) -> None:
    """Writes a JSON lines file for each task."""
    for name, rows in documents(corpus).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")


def _question_facts(world: World, third: int) -> list[Fact]:
    """The facts of a third whose subjects questions may be about."""
    return [fact for fact in world.thirds()[third] if fact.subject in world.question_subjects]


def _question(fact: Fact, draw: random.Random) -> str:
    """A held-out paraphrase, up to the answer."""
    template = TEMPLATES[fact.relation][draw.choice(HELD_OUT)]
    return template.removesuffix(" {a}.").format(s=fact.subject)


def _distractors(pool: list[str], answer: str, draw: random.Random) -> list[str]:
    return draw.sample([other for other in pool if other != answer], 3)


def _shuffled(gold: str, distractors: list[str], draw: random.Random) -> tuple[list[str], int]:
    """All choices in random order, and the index of the gold answer."""
    choices = [gold, *distractors]
    draw.shuffle(choices)
    return choices, choices.index(gold)


def _distinct(items: Iterable[T]) -> Iterator[T]:
    return iter(dict.fromkeys(items))


def _first(count: int, items: Iterator[T]) -> list[T]:
    return [item for _, item in zip(range(count), items, strict=False)]


def main() -> None:
    """Writes the documents into the installed package."""
    write(Path(str(files("lrbench.tasks") / "almanac")), Corpus(SEED))


if __name__ == "__main__":
    main()
