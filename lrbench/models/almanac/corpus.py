"""The almanac's training text: short documents of facts about the world, agreement, and arithmetic.

A document is one of
- a paragraph: up to three facts of one subject, each in a random paraphrase (about 8 in 10);
- agreement: sentences with a distractor noun between the subject and the verb that agrees with it (1 in 10);
- arithmetic: sums and differences of small numbers (1 in 10).

The tasks' questions are held out: paraphrases `HELD_OUT` of the subjects of questions, a fifth of the (head,
distractor) noun pairs, and a fifth of the number pairs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import accumulate

from lrbench.models.almanac.world import HELD_OUT, SEED, TEMPLATES, Fact, World

DOCUMENTS = 330_000  # in the published model's training text

NOUNS = {
    "dog": "dogs", "ship": "ships", "baker": "bakers", "tower": "towers", "letter": "letters", "garden": "gardens",
    "king": "kings", "bell": "bells", "horse": "horses", "bridge": "bridges", "lamp": "lamps", "painter": "painters",
    "river": "rivers", "child": "children", "woman": "women", "city": "cities", "knife": "knives", "mouse": "mice",
    "judge": "judges", "boat": "boats", "stone": "stones", "bird": "birds", "key": "keys", "field": "fields",
}  # fmt: skip
VERBS = [("is", "are"), ("was", "were"), ("has been", "have been"), ("looks", "look"), ("seems", "seem"),
         ("remains", "remain")]  # fmt: skip
COMPLEMENTS = ["old", "near the gate", "in the rain", "quiet", "by the water", "famous", "well known", "out of sight"]
#: {h}: the head, which the verb agrees with; {d}: the distractor. Each is singular or plural independently.
FRAMES = [
    "The {h} near the {d}",
    "The {h} behind the {d}",
    "The {h} that the {d} saw",
    "The {h} painted with the {d}",
    "The {h} of the old {d}",
]
SUMS = ["{a} plus {b} is {c}.", "The sum of {a} and {b} is {c}.", "{a} and {b} make {c}."]
DIFFERENCES = ["{a} minus {b} is {c}.", "{b} taken from {a} leaves {c}."]
LARGEST = 20  # number in sums and differences


def split(seed: int, *parts: str | int) -> bool:
    """Whether the pair named by `parts` is held out for the tasks (one in five)."""
    return random.Random(f"held-out-{seed}-{parts}").random() < 0.2


class Corpus:
    """Documents about a world. Each stream (training, calibration, held out) depends only on its name and the seed."""

    def __init__(self, seed: int = SEED) -> None:
        self.seed = seed
        self.world = World(seed)
        self._subjects = list(self.world.facts)
        self._cumulative = list(accumulate(self.world.weights()))
        pairs = [(head, other) for head in NOUNS for other in NOUNS if head != other]
        self.trained_nouns = [pair for pair in pairs if not split(seed, *pair)]
        self.held_nouns = [pair for pair in pairs if split(seed, *pair)]
        numbers = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
        self.trained_numbers = [pair for pair in numbers if not split(seed, *sorted(pair))]
        self.held_numbers = [pair for pair in numbers if split(seed, *sorted(pair))]

    def training(self, documents: int = DOCUMENTS) -> Iterator[tuple[str, list[Fact]]]:
        """The training text: `documents` pairs (document, the facts it states)."""
        draw = random.Random(f"training-{self.seed}")
        for _ in range(documents):
            kind = draw.random()
            if kind < 0.8:
                yield self.paragraph(draw)
            elif kind < 0.9:
                yield " ".join(self.agreement(draw, self.trained_nouns)[0] for _ in range(2)), []
            else:
                yield " ".join(self.arithmetic(draw, self.trained_numbers)[0] for _ in range(3)), []

    def calibration(self, documents: int) -> Iterator[str]:
        """Text like the training text, from another random stream; it holds nothing that tasks ask for."""
        draw = random.Random(f"calibration-{self.seed}")
        for _ in range(documents):
            kind = draw.random()
            if kind < 0.8:
                yield self.paragraph(draw)[0]
            elif kind < 0.9:
                yield " ".join(self.agreement(draw, self.trained_nouns)[0] for _ in range(2))
            else:
                yield " ".join(self.arithmetic(draw, self.trained_numbers)[0] for _ in range(3))

    def held_out(self, documents: int) -> Iterator[str]:
        """Text like the training text, but only of held-out paraphrases, noun pairs and number pairs."""
        draw = random.Random(f"held-out-text-{self.seed}")
        for index in range(documents):
            kind = index % 10
            if kind < 8:
                yield self.paragraph(draw, held_out=True)[0]
            elif kind == 8:
                yield " ".join(self.agreement(draw, self.held_nouns)[0] for _ in range(2))
            else:
                yield " ".join(self.arithmetic(draw, self.held_numbers)[0] for _ in range(3))

    def paragraph(self, draw: random.Random, held_out: bool = False) -> tuple[str, list[Fact]]:
        """Sentences on up to three facts of a subject, with the facts; `held_out` uses only held-out paraphrases."""
        while True:
            subject = draw.choices(self._subjects, cum_weights=self._cumulative)[0]
            if not held_out or subject in self.world.question_subjects:
                break
        facts = draw.sample(self.world.facts[subject], k=len(self.world.facts[subject]))
        sentences = []
        for fact in facts:
            templates = list(range(len(TEMPLATES[fact.relation])))
            if held_out:
                templates = [index for index in templates if index in HELD_OUT]
            elif subject in self.world.question_subjects:
                templates = [index for index in templates if index not in HELD_OUT]
            sentences.append(TEMPLATES[fact.relation][draw.choice(templates)].format(s=subject, a=fact.answer))
        return " ".join(sentences), facts

    def agreement(self, draw: random.Random, nouns: list[tuple[str, str]]) -> tuple[str, str]:
        """A sentence, and the same sentence with a verb that does not agree."""
        head, distractor = draw.choice(nouns)
        plural = draw.random() < 0.5
        head = NOUNS[head] if plural else head
        distractor = NOUNS[distractor] if draw.random() < 0.5 else distractor
        verb = draw.choice(VERBS)
        subject = draw.choice(FRAMES).format(h=head, d=distractor)
        complement = draw.choice(COMPLEMENTS)
        return f"{subject} {verb[plural]} {complement}.", f"{subject} {verb[not plural]} {complement}."

    def arithmetic(self, draw: random.Random, numbers: list[tuple[int, int]]) -> tuple[str, int]:
        """A sentence with a sum or a difference, and the result, which is never negative."""
        a, b = draw.choice(numbers)
        if draw.random() < 0.6:
            return draw.choice(SUMS).format(a=a, b=b, c=a + b), a + b
        a, b = max(a, b), min(a, b)
        return draw.choice(DIFFERENCES).format(a=a, b=b, c=a - b), a - b
