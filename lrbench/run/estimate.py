"""What a run of a suite would compute, and about how long: nothing is scored, a little of everything is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from lrbench.errors import LrbenchError
from lrbench.evaluation.base_engine import BaseEngine
from lrbench.evaluation.sweep import SweepEngine
from lrbench.evaluation.sweep.cost_model import SweepCost, cost
from lrbench.linalg import optimal_errors
from lrbench.models.base_model import Base
from lrbench.models.slots import WeightSlot
from lrbench.reducers.ranks import RankRequest
from lrbench.reduction.allocation.budget import Budget
from lrbench.reduction.calibration.white import WhiteInputs
from lrbench.reduction.cell_reducer import CellReducer
from lrbench.reduction.plan import Cell, Method
from lrbench.results.directory import RunDirectory
from lrbench.run.model_run import ModelRun, open_model
from lrbench.run.selection.choice import is_reference
from lrbench.run.selection.objective import Objective, objectives
from lrbench.run.selection.split import split_of
from lrbench.suite.load import ModelSpec, Suite
from lrbench.system.environment import environment, in_words
from lrbench.system.text import one_line
from lrbench.tasks.containment import contained
from lrbench.tasks.score import Answers, score

QUICK = 1.0  # seconds; what takes less is timed again, warm


@dataclass(frozen=True)
class Prediction:
    """What one model's share of a run would come to. Seconds are wall time on the device probed.

    Attributes:
        machine: on which this was measured, in words.
        to_score, there: cells that would be scored, and those that have a row.
        requests: log-likelihood requests of a cell.
        texts: of a cell, that lm-eval would have to generate; their time is in nothing here.
        sweep: what a cell's requests come to.
        block_tokens: positions times blocks of the whole sweep.
        setup_seconds: loading, building requests, self-check: measured, not predicted.
        reduce_seconds: decomposing the weights, with the checks of what the reducers return.
        score_seconds: the sweep, with edits put in place and metrics computed.
        calibrated: whether there are statistics to collect; what that takes is in nothing here.
        allocated: whether curves are needed to share out `keep_model`; what they take is in nothing here.
        composed: cells that compositions try at most, those with a row included; not in `to_score`, but in the time.
        reported: cells that are scored on test documents, where the suite chooses; their time is in nothing here.
        failures: reducers that failed when they were timed, with the reason.
    """

    machine: str
    to_score: int
    there: int
    requests: int
    texts: int
    sweep: SweepCost
    block_tokens: int
    setup_seconds: float
    reduce_seconds: float
    score_seconds: float
    composed: int = 0
    reported: int = 0
    calibrated: bool = False
    allocated: bool = False
    failures: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """All together."""
        return self.setup_seconds + self.reduce_seconds + self.score_seconds


def probe(
    suite: Suite,
    spec: ModelSpec,
    built: Sequence[Method],
    out: Path,
    *,
    device: str | None = None,
    trust_remote_code: bool = False,
    notify: Callable[[str], None],
) -> Prediction:
    """Loads a model, builds the requests, and times a little of what a run would do.

    Args:
        out: the run's directory; cells that have a row there would not be scored again.
        trust_remote_code: as for a run.
        notify: told what takes a while.

    Raises:
        InputError: the model or the tasks cannot be had, or the directory's rows cannot be read.
    """
    started = time.perf_counter()
    share = open_model(
        suite, spec, built, engine="sweep", device=device, trust_remote_code=trust_remote_code, notify=notify
    )
    share.engine.describe()  # has it check itself
    setup_seconds = time.perf_counter() - started
    plan, engine, more = share.plan, share.engine, {}
    if suite.select is not None:
        split = split_of(suite, suite.select, engine.requests)
        engine = engine.restricted(split.validation)
        more = {"race": suite.race.resolved()} if suite.race is not None else {}
    keys = share.keys(plan, engine, more)
    rows = RunDirectory(out).rows()
    missing = [cell for cell in plan.cells if keys[cell] not in rows and not cell.skip and not cell.failure]
    notify("timing some of the work")
    sweep = cost(cast(SweepEngine, engine))
    levels = _composed(share)
    composed = [cell for level in levels for cell in level]
    sweeps = [[cell.first_block or 0 for cell in cells] for cells in (missing, *levels)]
    asked = [_alike(cell) for cell in (*missing, *composed) if cell.method and cell.request]
    reducing = _reduce(asked, suite.seed, share.base)
    score_seconds = sum(map(sweep.seconds, sweeps)) + reducing.placing_seconds
    score_seconds += (len(missing) + len(composed)) * _metrics(engine)
    return Prediction(
        machine=in_words(environment(share.loaded.device)),
        to_score=len(missing),
        there=sum(key in rows for key in keys.values()),
        requests=len(engine.requests.pair_requests) + len(engine.requests.rolling_requests),
        texts=len(engine.requests.prompts),
        sweep=sweep,
        block_tokens=sum(map(sweep.block_tokens, sweeps)),
        setup_seconds=setup_seconds,
        reduce_seconds=reducing.seconds,
        score_seconds=score_seconds,
        composed=len(composed),
        reported=_reported(share),
        calibrated=share.calibration is not None and any(cell.calibrated for cell in (*missing, *composed)),
        allocated=any(cell.allocation not in (None, "uniform") for cell in (*missing, *composed)),
        failures=tuple(reducing.failures),
    )


def _composed(share: ModelRun) -> list[list[Cell]]:
    """What compositions try, block by block, as if nothing were accepted: what was is scored and not reduced again.

    For each objective apart, but for the first block, at which all of them try the same.
    """
    levels = []
    for one in share.compositions:
        for level in range(len(one.levels)):
            cells = [cell for cell in one.trials(None, level) if not cell.skip and not cell.failure]
            levels += [cells] * (len(_aims(share)) if level else 1)
    return levels


def _aims(share: ModelRun) -> Sequence[Objective]:
    assert share.suite.select is not None
    return objectives(share.engine.requests, share.tasks.named, share.suite.select.on)


def _reported(share: ModelRun) -> int:
    """Cells that a selection scores on test: of each method one for each objective, and what they are compared with."""
    if share.suite.select is None:
        return 0
    labels = {cell.method.label for cell in share.plan.cells if cell.method is not None and not is_reference(cell)}
    chosen = len(_aims(share)) * (len(labels) + len(share.compositions))
    return chosen + sum(is_reference(cell) for cell in share.plan.cells)


@dataclass
class _Reducing:
    seconds: float
    placing_seconds: float
    failures: list[str]


def _reduce(cells: Sequence[Cell], seed: int, base: Base | None = None) -> _Reducing:
    """Times each method on one slot of each shape, at the largest rank that is asked of it, and multiplies."""
    total = _Reducing(0.0, 0.0, [])
    kinds: dict[tuple[str, tuple[int, int], str], list[tuple[Cell, WeightSlot]]] = {}
    judged: dict[tuple[int, int], dict[str, WeightSlot]] = {}
    for cell in cells:
        assert cell.method is not None
        assert cell.request is not None
        for slot in cell.slots:
            kinds.setdefault((cell.method.label, slot.about.shape, cell.request.kind), []).append((cell, slot))
            judged.setdefault(slot.about.shape, {})[slot.name] = slot
    spectrum_seconds = {}
    for shape, slots in judged.items():  # the spectrum that each weight's reductions are judged by, once a run
        weight = next(iter(slots.values())).read()
        weight = weight if weight.dtype.itemsize == 8 else weight.float()
        spectrum_seconds[shape] = _timed(lambda weight=weight: optimal_errors(weight))  # type: ignore[misc]
        total.seconds += len(slots) * spectrum_seconds[shape]
    reductions = CellReducer(seed, WhiteInputs(), base)
    seen: set[str] = set()
    for (_, shape, _), asked in kinds.items():
        cell, slot = max(asked, key=lambda entry: _size(entry[0]))
        alone = replace(cell, slots=(slot,))
        groups = len({(each.slots, slot.name) for each, slot in asked})
        first = 0.0 if slot.name in seen else spectrum_seconds[shape]
        seen.add(slot.name)
        one = _of_group(reductions, [alone], first, total.failures)
        if one is None:
            continue
        seconds, placing = one
        rank_seconds = seconds
        if cell.method and cell.method.reducer.one_preparation and groups < len(asked):
            two = _of_group(reductions, [alone, replace(alone)], 0.0, total.failures)
            rank_seconds = min(seconds, max(0.0, two[0] - seconds)) if two else seconds
        total.seconds += groups * (seconds - rank_seconds) + len(asked) * rank_seconds
        total.placing_seconds += len(asked) * placing
    return total


def _alike(cell: Cell) -> Cell:
    """A cell that takes as long to reduce: where numbers are to be shared out, the same share for each slot."""
    if cell.allocation is None:
        return cell
    assert cell.request is not None
    most = Budget.of(cell.slots, float(cell.request.value)).max_stored
    share = min(1.0, max(0.0, most / sum(slot.size for slot in cell.slots)))
    return replace(cell, request=RankRequest("keep", share), allocation=None)


def _size(cell: Cell) -> float:
    """Sorts requests of one kind on one shape by the rank that they come to."""
    assert cell.request is not None
    return -cell.request.value if cell.request.kind == "error" else cell.request.value


def _of_group(
    reductions: CellReducer, cells: list[Cell], first: float, failures: list[str]
) -> tuple[float, float] | None:
    """Seconds of a group's reductions, and of making the matrix that one puts in place; None where it fails.

    Args:
        first: seconds that this slot's first reduction takes longer than others.
    """
    started = time.perf_counter()
    done = [outcome for _, outcome in reductions.reduce_group(cells)]
    seconds = time.perf_counter() - started
    if isinstance(done[0], LrbenchError):
        failures.append(one_line(done[0]))
        return None
    if seconds < QUICK:
        started = time.perf_counter()
        list(reductions.reduce_group(cells))
        seconds, first = time.perf_counter() - started, 0.0
    started = time.perf_counter()
    done[0][0].matrix()
    return max(0.0, seconds - first), time.perf_counter() - started


def _metrics(engine: BaseEngine) -> float:
    """Seconds from a cell's answers to its scores."""
    requests = engine.requests
    answers = Answers(
        [(-1.0, False)] * len(requests.pair_requests),
        [-1.0] * len(requests.rolling_requests),
        [""] * len(requests.prompts),
    )
    started = time.perf_counter()
    try:
        with contained():
            score(requests, answers)
    except Exception:  # the tasks' code may raise on made-up answers: it is not what takes long
        return 0.0
    return time.perf_counter() - started


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    seconds = time.perf_counter() - started
    if seconds < QUICK:
        started = time.perf_counter()
        call()
        seconds = time.perf_counter() - started
    return seconds
