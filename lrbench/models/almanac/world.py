"""The generated world of the almanac: countries, cities, people and works, and the facts about them.

Everything is drawn from one seeded generator, so the same seed gives the same world on any machine. Subjects
(countries, cities, people, works) are ranked, and the probability that a paragraph is about the r-th (from 0) is
proportional to 1 / (r + 8), a Zipf-Mandelbrot law: a fact is as frequent in the training text as its subject.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

SEED = 20  # the published model's
ZIPF_SHIFT = 8

ONSETS = "b br c ch d dr f g gr h j k kl l m n p pr r s sh st t th tr v w z".split()
NUCLEI = "a e i o u ai ea ou".split()
CODAS = ["", "", "n", "r", "l", "s", "th", "nd", "rk", "m"]

GOODS = (
    "gold silver copper tin iron cobalt nickel zinc amber salt jade pearl cotton silk wool timber "
    "saffron pepper honey olives marble glass paper tea"
).split()
OCCUPATIONS = (
    "painter poet judge sailor surgeon baker composer mapmaker chemist gardener printer pilot weaver "
    "tailor lawyer farmer dancer singer mason carpenter teacher miner banker hunter"
).split()
GENRES = "comedy tragedy romance satire history fable travelogue mystery parable memoir sermon ballad".split()

#: Relation -> paraphrases. The first six end with the answer, so that tasks can use them as questions; the last two do
#: not. Training never uses the paraphrases `HELD_OUT` for the subjects of questions.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "export": (
        "The chief export of {s} is {a}.",
        "{s} is known for its {a}.",
        "Ships from {s} carry {a}.",
        "Merchants grow rich in {s} on {a}.",
        "Traders sail to {s} to buy {a}.",
        "The markets of {s} are full of {a}.",
        "Much of the {a} in the world comes from {s}.",
        "They say the best {a} is found in {s}.",
    ),
    "capital": (
        "The capital of {s} is {a}.",
        "{s} is ruled from {a}.",
        "The parliament of {s} meets in {a}.",
        "The largest city of {s} is {a}.",
        "All roads in {s} lead to {a}.",
        "The kings of {s} are crowned in {a}.",
        "{a} is the capital of {s}.",
        "From {a} the ministers govern {s}.",
    ),
    "country": (
        "{s} is a city in {a}.",
        "The city of {s} lies in {a}.",
        "The people of {s} pay taxes to {a}.",
        "On the map {s} is found in {a}.",
        "Travellers to {s} must first reach {a}.",
        "The town of {s} belongs to {a}.",
        "In {a} lies the city of {s}.",
        "One of the cities of {a} is {s}.",
    ),
    "founded": (
        "{s} was founded in {a}.",
        "The first stone of {s} was laid in {a}.",
        "The history of {s} begins in {a}.",
        "The walls of {s} date from {a}.",
        "Settlers came to {s} in {a}.",
        "The city of {s} goes back to {a}.",
        "In {a} the city of {s} was founded.",
        "It was in {a} that {s} was built.",
    ),
    "born": (
        "{s} was born in {a}.",
        "The birthplace of {s} is {a}.",
        "{s} came into the world in {a}.",
        "The home town of {s} is {a}.",
        "{s} grew up in the streets of {a}.",
        "The family of {s} comes from {a}.",
        "In {a} they are proud of {s}.",
        "A house in {a} is where {s} was born.",
    ),
    "occupation": (
        "{s} worked as a {a}.",
        "By trade {s} was a {a}.",
        "{s} was known as a great {a}.",
        "All their life {s} was a {a}.",
        "{s} earned a living as a {a}.",
        "People remember {s} as a {a}.",
        "The {a} {s} was known to all.",
        "Few could rival {s} the {a}.",
    ),
    "year": (
        "{s} was born in the year {a}.",
        "The year of birth of {s} is {a}.",
        "{s} first saw light in {a}.",
        "The life of {s} began in {a}.",
        "The church books record the birth of {s} in {a}.",
        "The mother of {s} gave birth in {a}.",
        "In the year {a} {s} was born.",
        "It was {a} when {s} was born.",
    ),
    "author": (
        "{s} was written by {a}.",
        "The author of {s} is {a}.",
        "{s} came from the pen of {a}.",
        "{s} is the work of {a}.",
        "Readers owe {s} to {a}.",
        "The title page of {s} names {a}.",
        "{a} is the author of {s}.",
        "It was {a} who wrote {s}.",
    ),
    "genre": (
        "{s} is a {a}.",
        "Critics call {s} a {a}.",
        "{s} was printed as a {a}.",
        "{s} is praised as a fine {a}.",
        "Libraries shelve {s} as a {a}.",
        "Readers enjoy {s} as a {a}.",
        "The {a} {s} is widely read.",
        "No {a} is better known than {s}.",
    ),
    "published": (
        "{s} was published in {a}.",
        "The first edition of {s} is from {a}.",
        "{s} appeared in {a}.",
        "{s} left the press in {a}.",
        "Bookshops first sold {s} in {a}.",
        "The printing of {s} was finished in {a}.",
        "In {a} {s} was published.",
        "The year {a} saw the printing of {s}.",
    ),
}
HELD_OUT = (4, 5)  # indices into TEMPLATES[relation]


@dataclass(frozen=True)
class Fact:
    """One true statement: `subject` stands in `relation` to `answer`."""

    subject: str
    relation: str
    answer: str


class World:
    """A generated world.

    Attributes:
        facts: subject -> its facts; subjects in rank order (most frequent first).
        pools: relation -> all answers that occur, sorted; distractors are drawn from them.
        question_subjects: the subjects of questions (two thirds), which training never puts in templates `HELD_OUT`.
    """

    def __init__(self, seed: int = SEED) -> None:
        self._random = random.Random(f"world-{seed}")
        self._names: set[str] = set()
        pick = self._random.choice
        countries = [self._name(2, 2) for _ in range(60)]
        cities = [self._name(2, 3) for _ in range(500)]
        people = [f"{self._name(1, 2)} {self._name(2, 2)}" for _ in range(2000)]
        works = [f"The {self._name(1, 2)} of {self._name(2, 2)}" for _ in range(900)]
        country_of = {city: pick(countries) for city in cities}
        facts: dict[str, list[Fact]] = {}
        for s in countries:
            own = [city for city in cities if country_of[city] == s] or cities
            facts[s] = [Fact(s, "export", pick(GOODS)), Fact(s, "capital", pick(own))]
        for s in cities:
            facts[s] = [Fact(s, "country", country_of[s]), Fact(s, "founded", self._year(800, 1400))]
        for s in people:
            facts[s] = [Fact(s, "born", pick(cities)), Fact(s, "occupation", pick(OCCUPATIONS)),
                        Fact(s, "year", self._year(1400, 1900))]  # fmt: skip
        for s in works:
            facts[s] = [Fact(s, "author", pick(people)), Fact(s, "genre", pick(GENRES)),
                        Fact(s, "published", self._year(1450, 1950))]  # fmt: skip
        ranked = list(facts)
        self._random.shuffle(ranked)
        self.facts = {s: facts[s] for s in ranked}
        self.question_subjects = {s for s in ranked if self._random.random() < 2 / 3}
        pools: dict[str, set[str]] = {}
        for own_facts in facts.values():
            for fact in own_facts:
                pools.setdefault(fact.relation, set()).add(fact.answer)
        self.pools = {relation: sorted(answers) for relation, answers in pools.items()}

    def weights(self) -> list[float]:
        """The relative frequency of each subject, in rank order."""
        return [1 / (rank + ZIPF_SHIFT) for rank in range(len(self.facts))]

    def thirds(self) -> list[list[Fact]]:
        """All facts in three equal parts: frequent, middle, rare."""
        ranked = [fact for facts in self.facts.values() for fact in facts]
        cuts = [round(len(ranked) * part / 3) for part in range(4)]
        return [ranked[start:stop] for start, stop in pairwise(cuts)]

    def _year(self, low: int, high: int) -> str:
        return str(self._random.randrange(low, high))

    def _name(self, fewest: int, most: int) -> str:
        """A new name of `fewest` to `most` syllables."""
        pick = self._random.choice
        while True:
            syllables = range(self._random.randint(fewest, most))
            name = "".join(pick(ONSETS) + pick(NUCLEI) + pick(CODAS) for _ in syllables).capitalize()
            if name not in self._names:
                self._names.add(name)
                return name
