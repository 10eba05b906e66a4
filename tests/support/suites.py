"""Small suites on the bundled model, and reducers that misbehave."""

from pathlib import Path
from textwrap import dedent

from lrbench.evaluation.interface import Step
from lrbench.reducers.registry import Registry
from lrbench.results.rows import Row
from lrbench.run.recorder import RunResult
from lrbench.run.runner import run_suite
from lrbench.suite.load import load_suite

SMALL = """\
name: small
model: {name: almanac, device: cpu}
tasks:
  - {task: almanac_facts_rare, limit: 8}
  - {task: almanac_agreement, limit: 8}
  - {task: almanac_text, limit: 3}
reducers: [svd, cr]
sweep:
  - mode: each
    layers: [2, 5]
    weights: [mlp.down]
    rank: {keep: [0.5]}
"""


def write_suite(folder: Path, text: str = SMALL, **replaced: str) -> Path:
    """Writes a suite; `reducers="[svd]"` replaces a one-line key."""
    lines = dedent(text).splitlines()
    for key, value in replaced.items():
        matching = [index for index, line in enumerate(lines) if line.strip().removeprefix("- ").startswith(f"{key}:")]
        assert len(matching) == 1, key
        start = lines[matching[0]]
        lines[matching[0]] = start[: start.index(f"{key}:")] + f"{key}: {value}"
    path = folder / "suite.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


class Heard:
    """A progress that remembers, and stops the run after `stop_after` rows."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.steps: list[Step] = []
        self.stop_after = stop_after

    def note(self, message):
        self.notes.append(message)

    def planned(self, model, cells, reused, tasks):
        self.cells, self.reused = cells, reused

    def scoring(self, step):
        self.steps.append(step)

    def finished(self, row):
        self.rows.append(row)
        if len(self.rows) == self.stop_after:
            raise KeyboardInterrupt


def run(suite: Path, out: Path, *plugins: Path, heard: Heard | None = None, overrides=(), **options) -> RunResult:
    """Runs a suite file as the command line would."""
    loaded = load_suite(suite, overrides=overrides)
    registry = Registry.load([*loaded.plugins, *plugins])
    return run_suite(loaded, registry, out, progress=heard or Heard(), **options)


MISBEHAVING = """
import sys
import time
from pathlib import Path

import torch
import lrbench


class Raises(lrbench.Reducer):
    name = "raises"
    def reduce(self, weight, rank, context):
        raise RuntimeError("no luck\\nat all")


class WrongShape(lrbench.Reducer):
    name = "wrong-shape"
    def reduce(self, weight, rank, context):
        return lrbench.LowRank(weight[:-1, :rank].clone(), weight[:rank].clone())


class GivesNan(lrbench.Reducer):
    name = "gives-nan"
    def reduce(self, weight, rank, context):
        return lrbench.LowRank(weight[:, :rank] * float("nan"), weight[:rank].clone())


class Lies(lrbench.Reducer):
    name = "lies"
    def reduce(self, weight, rank, context):
        return lrbench.LowRank(weight[:, :rank].clone(), weight[:rank].clone())
    def stored_numbers(self, shape, rank):
        return rank


class Writes(lrbench.Reducer):
    name = "writes"
    def reduce(self, weight, rank, context):
        weight.zero_()
        return lrbench.LowRank(weight[:, :rank].clone(), weight[:rank].clone())


class ReturnsTensor(lrbench.Reducer):
    name = "returns-tensor"
    def reduce(self, weight, rank, context):
        return weight.clone()


class Picky(lrbench.Reducer):
    name = "picky"
    def supports(self, slot):
        return "odd layers are not to its taste" if slot.layer % 2 else None
    def reduce(self, weight, rank, context):
        return lrbench.Dense(weight.clone())


class SizeRaises(lrbench.Reducer):
    name = "size-raises"
    def reduce(self, weight, rank, context):
        return lrbench.Dense(weight.clone())
    def stored_numbers(self, shape, rank):
        return {}[rank]


class SizeIsText(lrbench.Reducer):
    name = "size-is-text"
    def reduce(self, weight, rank, context):
        return lrbench.Dense(weight.clone())
    def stored_numbers(self, shape, rank):
        return "many"


class NoDense(lrbench.Dense):
    def dense(self):
        raise RuntimeError("no dense today")


class FactorsRaise(lrbench.Reducer):
    name = "factors-raise"
    def reduce(self, weight, rank, context):
        return NoDense(weight.clone())


class Moody(lrbench.Reducer):
    name = "moody"
    def reduce(self, weight, rank, context):
        if (Path(__file__).parent / "bad mood").exists():
            raise RuntimeError("not today")
        return lrbench.Dense(weight.clone())


class Slow(lrbench.Prepared):
    def __init__(self, weight):
        self.weight = weight
    def at_rank(self, rank):
        return lrbench.LowRank(self.weight[:, :rank].clone(), self.weight[:rank].clone())


class SlowWhenLarge(lrbench.Reducer):
    name = "slow-when-large"
    def prepare(self, weight, ranks, context):
        time.sleep(max(ranks) > 50)
        return Slow(weight)


class Exits(lrbench.Reducer):
    name = "exits"
    def reduce(self, weight, rank, context):
        sys.exit(3)


class WritesData(lrbench.Reducer):
    name = "writes-data"
    def reduce(self, weight, rank, context):
        weight.data.zero_()
        return lrbench.LowRank(weight[:, :rank].clone(), weight[:rank].clone())


class Free(lrbench.LowRank):
    stored_numbers = 1


class SizeLies(lrbench.Reducer):
    name = "size-lies"
    def reduce(self, weight, rank, context):
        return Free(weight[:, :rank].clone(), weight[:rank].clone())


class Modest(lrbench.Dense):
    rank = 1


class TooGood(lrbench.Reducer):
    name = "too-good"
    def reduce(self, weight, rank, context):
        return Modest(weight.clone())


class Unsupportive(lrbench.Reducer):
    name = "unsupportive"
    def supports(self, slot):
        raise KeyError("no such slot")
    def reduce(self, weight, rank, context):
        return lrbench.Dense(weight.clone())


class Boasts(lrbench.Prepared):
    def __init__(self, weight):
        self.weight = weight
    def at_rank(self, rank):
        return lrbench.ColumnSubset(self.weight[:, :rank].clone(), torch.arange(rank), self.weight.shape[1])
    def errors(self, ranks):
        return [0.0] * len(ranks)


class Boastful(lrbench.Reducer):
    name = "boastful"
    def prepare(self, weight, ranks, context):
        return Boasts(weight)


@lrbench.hookimpl
def lrbench_reducers():
    return [
        Exits, WritesData, SizeLies, TooGood, Unsupportive, Boastful,
        Raises, WrongShape, GivesNan, Lies, Writes, ReturnsTensor, Picky, SizeRaises, SizeIsText, FactorsRaise, Moody,
        SlowWhenLarge,
    ]
"""
