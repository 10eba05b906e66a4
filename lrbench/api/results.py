"""`lrbench.read_results`: the rows of a run, for notebooks."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench.analysis.edit_summary import describe, optimal_error, ranks, relative_error
from lrbench.analysis.scored_run import ScoredRun
from lrbench.api.arguments import path_of
from lrbench.errors import InputError
from lrbench.results.directory import open_run
from lrbench.results.rows import Row
from lrbench.stats.metric_names import primary
from lrbench.system.text import printable

if TYPE_CHECKING:
    import pandas


#: The number of rows that a `repr` shows.
MOST_ROWS = 20


class Results(list[Row]):
    """The rows of a run, in order, including baselines (`reducer` is None).

    Attributes:
        path: the run's directory.
    """

    def __init__(self, rows: Iterable[Row] = (), path: Path | None = None) -> None:
        super().__init__(rows)
        self.path = path

    def to_pandas(self) -> pandas.DataFrame:
        """One line a row; scores as `task/metric` and `task/metric_stderr`, parameters as `params.NAME`.

        Raises:
            InputError: pandas is not installed.
        """
        return import_pandas().DataFrame([flat(row) for row in self])

    def __repr__(self) -> str:
        where = f" of {self.path}" if self.path is not None else ""
        counts = Counter(row.status for row in self)
        title = f"{len(self)} row{'' if len(self) == 1 else 's'}{where}"
        lines = [": ".join(filter(None, [title, ", ".join(f"{count} {status}" for status, count in counts.items())]))]
        width = max((len(row.method or "baseline") for row in self[:MOST_ROWS]), default=0)
        for row in self[:MOST_ROWS]:
            scores = [
                f"{task} {metric} {scores[metric].value:.4g}"
                for task, scores in row.scores.items()
                if scores and (metric := primary(scores))
            ]
            described = ", ".join(scores) if row.status == "ok" else f"{row.status}: {row.reason}"
            lines.append(f"  {row.method or 'baseline':{width}}  {row.setting:14}  {described}".rstrip())
        if len(self) > MOST_ROWS:
            lines.append(f"  and {len(self) - MOST_ROWS} more")
        return "\n".join(map(printable, lines))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def import_pandas() -> Any:
    """The module pandas. Raises InputError if it is not installed."""
    try:
        import pandas
    except ImportError:
        raise InputError("pandas is not installed; pip install 'lrbench[pandas]'") from None
    return pandas


def read_results(run: str | Path) -> Results:
    """Reads the rows of a run that belong to its suite.

    Args:
        run: a run's directory, which holds `rows.jsonl`.

    Raises:
        InputError: the directory holds no run, or its files cannot be read.
    """
    directory = open_run(path_of("run", run))
    return Results(ScoredRun(directory, directory.path.name).rows.values(), directory.path)


def flat(row: Row) -> dict[str, Any]:
    """A row as plain values, one level deep."""
    kind, value = next(iter(row.requested.items()), (None, None))
    line: dict[str, Any] = {
        "cell": row.cell, "status": row.status, "reason": row.reason, "suite": row.suite, "model": row.model,
        "method": row.label, "reducer": row.reducer, "delta": row.delta, "mode": row.mode,
        "rank_kind": kind, "rank_value": value, "allocation": row.allocation,
        "seed": row.seed, "edited": describe(row.edits), "weights": len(row.edits), "rank": ranks(row.edits),
        "keep_targets": row.keep_targets, "keep_model": row.keep_model, "compression_ratio": row.compression_ratio,
        "relative_error": relative_error(row.edits), "optimal_error": optimal_error(row.edits),
        "predicted_loss": row.predicted_loss,
        "calibrate_seconds": row.calibrate_seconds, "decompose_seconds": row.decompose_seconds,
        "allocate_seconds": row.allocate_seconds,
        "evaluate_seconds": row.evaluate_seconds, "environment": row.environment,
    }  # fmt: skip
    line |= {f"params.{name}": value for name, value in row.params.items()}
    if row.selection is not None:
        line |= {key: getattr(row.selection, key) for key in ("split", "chosen_for", "candidates")}
    for task, scores in row.scores.items():
        for metric, score in scores.items():
            line[f"{task}/{metric}"] = score.value
            line[f"{task}/{metric}_stderr"] = score.stderr
    for entry in row.inference.batches if row.inference is not None else ():
        for form in ("dense", "factored"):
            speed = getattr(entry, form)
            if speed is not None:
                line |= {f"inference/{form}/batch{entry.batch}/{figure}": value for figure, value in speed}
    return line
