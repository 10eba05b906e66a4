"""A sweep's cells, planned and factorized beforehand, and an engine's run over them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from lrbench.evaluation.base_engine import BaseEngine
from lrbench.evaluation.interface import Job
from lrbench.models.edit import edited
from lrbench.models.load import LoadedModel
from lrbench.models.slots import WeightSlot
from lrbench.tasks.score import Samples
from sweep_floor import synchronize

Forward = Callable[..., Any]
KEPT = (0.05, 0.3)  # of the full rank, the smallest and the largest edit


@dataclass(frozen=True)
class Cell:
    """One low-rank edit of one matrix of a block: left (m, k), right (k, n)."""

    key: str
    layer: int
    slot: WeightSlot
    left: torch.Tensor
    right: torch.Tensor

    def job(self) -> Job:
        """What an engine is given."""
        return Job(self.key, self.layer, self._edited, (self.slot.module_name,))

    def _edited(self) -> AbstractContextManager[None]:
        return edited({self.slot: (self.left.float() @ self.right.float()).to(self.slot.tensor().dtype)})


def make_cells(loaded: LoadedModel, layers: Sequence[int], rates: int, weight: str = "mlp.down") -> list[Cell]:
    """`rates` edits of each block's `weight`, in the blocks' order; factorized once a block (randomized SVD).

    A block's edit at a rank does not depend on the other blocks and ranks asked for.
    """
    cells = []
    for slot in loaded.inventory.select(layers, [weight]):
        layer, full = slot.about.layer, min(slot.about.shape)
        assert layer is not None
        torch.manual_seed(layer)
        left, values, right = torch.svd_lowrank(slot.read().float(), q=max(1, round(full * KEPT[1])), niter=1)
        left, right = (left * values).to(loaded.dtype), right.T.to(loaded.dtype)
        for rank in sorted({max(1, round(full * kept)) for kept in np.linspace(*KEPT, rates)}):
            cells.append(Cell(f"{layer}-{rank}", layer, slot, left[:, :rank], right[:rank]))
    return cells


@dataclass
class Swept:
    """An engine's run over a sweep.

    Attributes:
        setup_seconds: until the first cell could be scored: requests, packing, self-check.
        seconds: wall time of the whole sweep.
        cell_seconds: as the engine reports them, in the cells' order.
        block_flops: of the matrix products with weights inside blocks that really ran; None where they were not seen.
        head_positions: rows that the head was applied to; None where the head was not seen.
        samples: cell -> documents, for the cells whose samples were to be kept.
    """

    setup_seconds: float
    seconds: float = 0.0
    cell_seconds: list[float] = field(default_factory=list)
    block_flops: float = 0.0
    head_positions: int | None = 0
    samples: dict[str, Samples] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)

    def line(self, cells: Sequence[Cell], blocks: int) -> tuple[float, float, float] | None:
        """Least squares over all cells but the first of each block, which pays for moving the frontier up to it.

        Returns:
            Seconds for each further block that a cell runs, seconds for a cell that would run none, and what the first
            cells of the blocks took beyond that line, together. None where there are too few cells.
        """
        later = [i for i, cell in enumerate(cells) if i and cells[i - 1].layer == cell.layer]
        to_run = np.array([blocks - cell.layer for cell in cells])
        if len(set(to_run[later])) < 2:
            return None
        seconds = np.array(self.cell_seconds)
        slope, constant = np.polyfit(to_run[later], seconds[later], 1)
        beyond = np.delete(seconds - (slope * to_run + constant), later)
        return float(slope), float(constant), float(beyond.sum())


def run_sweep(
    engine: BaseEngine, loaded: LoadedModel, cells: Sequence[Cell], setup_seconds: float, keep: Collection[str]
) -> Swept:
    """Scores all cells as a run does: block after block, unless the engine wants them all at once.

    Args:
        setup_seconds: what making the engine took.
        keep: keys of the cells whose samples are wanted.

    Raises:
        LrbenchError: a cell failed.
    """
    swept = Swept(setup_seconds)
    by_layer: dict[int, list[Job]] = {}
    for cell in cells:
        by_layer.setdefault(cell.layer, []).append(cell.job())
    groups = list(by_layer.values())
    if getattr(engine, "prefers_many", False):
        groups = [[job for jobs in groups for job in jobs]]
    with _counted(loaded, swept):
        synchronize(loaded.device)
        started = time.perf_counter()
        for jobs in groups:
            for outcome in engine.score(jobs):
                if outcome.error is not None:
                    raise outcome.error
                swept.cell_seconds.append(outcome.seconds)
                if outcome.cell in keep:
                    swept.samples[outcome.cell] = outcome.samples
        synchronize(loaded.device)
        swept.seconds = time.perf_counter() - started
    swept.head_positions = swept.head_positions or None
    swept.description = {key: value for key, value in engine.describe().items() if key != "tasks"}
    return swept


@contextmanager
def _counted(loaded: LoadedModel, swept: Swept) -> Iterator[None]:
    """Counts what goes through every weight of every block, and through the head.

    The forwards themselves are counted, not the calls of their modules: an engine may wrap them to compute less.
    """
    forwards: list[tuple[nn.Module, Forward | None]] = []

    def counted(module: nn.Module, count: Callable[[int], None]) -> None:
        forward = module.forward

        def counting(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            count(output.numel() // output.shape[-1])
            return output

        forwards.append((module, module.__dict__.get("forward")))
        module.__dict__["forward"] = counting

    def weight(numbers: int) -> Callable[[int], None]:
        def ran(positions: int) -> None:
            swept.block_flops += 2.0 * numbers * positions

        return ran

    def head(positions: int) -> None:
        swept.head_positions = (swept.head_positions or 0) + positions

    output = loaded.model.get_output_embeddings()
    assert output is not None
    try:
        for slot in loaded.inventory.slots:
            if slot.about.layer is not None:
                counted(slot.module, weight(slot.size))
        counted(output, head)
        yield
    finally:
        for module, before in reversed(forwards):
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before
