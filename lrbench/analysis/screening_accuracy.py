"""Compares a screening's predictions with the measured changes of the screened cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lrbench.analysis.edit_summary import describe
from lrbench.analysis.score import document_loss
from lrbench.analysis.scored_run import ScoredRun
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Row


@dataclass(frozen=True)
class ScreenedCell:
    """One cell and one choice that it was screened for.

    Attributes:
        choice: the task or group, or `mean`.
        weights: names of the edited weights.
        predicted: change of the log-loss by a first-order expansion, in nats per document.
        measured: the actual change, on the validation documents that both models were scored on.
    """

    model: str
    choice: str
    method: str
    setting: str
    edited: str
    weights: tuple[str, ...]
    predicted: float
    measured: float


def screened_cells(runs: Sequence[RunDirectory]) -> list[ScreenedCell]:
    """All screened and scored cells of the runs.

    Raises:
        InputError: a run's files cannot be read.
    """
    cells = []
    for directory in runs:
        run = ScoredRun(directory, directory.path.name, "validation")
        losses: dict[str, dict[tuple[str, int], float]] = {}
        for row in run.rows.values():
            predicted = row.selection.predicted if row.selection is not None else None
            baseline = run.baseline_of(row)
            if row.status != "ok" or not predicted or baseline is None:
                continue
            for scored in (row, baseline):
                if scored.cell not in losses:
                    losses[scored.cell] = _losses(run, scored)
            for choice, change in predicted.items():
                measured = _change(run, row, choice, losses[row.cell], losses[baseline.cell])
                if measured is not None:
                    edited = describe(row.edits, run.blocks.get(row.model))
                    weights = tuple(edit.weight for edit in row.edits)
                    about = (row.model, choice, row.label or "", row.setting, edited, weights)
                    cells.append(ScreenedCell(*about, change, measured))
    return cells


def _losses(run: ScoredRun, row: Row) -> dict[tuple[str, int], float]:
    """(task, document) -> negative log-likelihood of the gold answer."""
    losses = {}
    for sample in run.run.samples(row.cell):
        loss = document_loss(sample)
        if loss is not None and math.isfinite(loss):
            losses[sample["task"], sample["doc"]] = loss
    return losses


def _change(
    run: ScoredRun, row: Row, choice: str, ours: dict[tuple[str, int], float], theirs: dict[tuple[str, int], float]
) -> float | None:
    """The change for one choice on the documents of both models; the mean over several tasks."""
    of_choice = [choice] if choice in row.scores else [task for task in row.scores if run.top_level(task)]
    parts = []
    for part in of_choice:
        leaves = set(run.leaves(part))
        common = [key for key in ours if key[0] in leaves and key in theirs]
        if common:
            parts.append(math.fsum(ours[key] - theirs[key] for key in common) / len(common))
    return math.fsum(parts) / len(parts) if parts else None
