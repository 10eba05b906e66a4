"""Formats values for readers: digits, units, signs, legends, and names without control characters."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lrbench.analysis.leaderboard import Column, Entry, Leaderboard, Value
from lrbench.analysis.score import Measurement
from lrbench.reports.render import selection_notes as selection
from lrbench.system.text import clean

MISSING = "—"
PARETO = "◆"

_UNITS = {
    "keep": "keep targets: stored over dense parameters of the edited weights",
    "keep_model": "keep model: the same for the whole model",
    "compression": "smaller: dense over stored parameters of the whole model",
    "error": "error: ‖W − Ŵ‖ / ‖W‖, after rounding",
    "optimum": "opt.: the least error of any matrix of that rank",
    "predicted_loss": "predicted loss: nats per token that the edits add on the calibration text, to second order",
    "decompose": "time: seconds of decomposition",
    "prefill": "prefill / dense: tokens per second reading one prompt, factored edited model over baseline",
    "decode": "decode / dense: the same while generating",
    "memory": "memory / dense: peak memory at the largest batch, factored edited model over baseline",
}
SIGNIFICANT, TIE, SPREAD = "*", "=", "σ"
STYLES = "Green: better, red: worse."
FRONT = (
    f"{PARETO} Pareto-optimal: no other row scored on the same documents is at least as small and as good, and better "
    "in one."
)


def units(columns: Iterable[Column]) -> str:
    """One sentence that explains the columns."""
    names = [column.name for column in columns]
    known = {**_UNITS, "keep_model": "keep model: stored over dense parameters"} if "keep" not in names else _UNITS
    scores = "Accuracies in %, ± one standard error, signed: the difference (Δ) from the baseline"
    return "; ".join([scores, *(known[name] for name in names if name in known)]) + "."


def marks(board: Leaderboard, *, bold: bool = True) -> str:
    """Explains the marks of scores: the test, its level and the number of comparisons.

    Args:
        bold: whether the medium has bold type.
    """
    parts = []
    rivals = "the rows with the same choice" if board.selected else "its setting"
    sizes = {size for size in board.family.values() if size}
    if sizes:
        over = f"the {sizes.pop()} comparisons" if len(sizes) == 1 else "the comparisons"
        parts.append(
            f"{SIGNIFICANT} differs from the baseline: exact sign-flip test paired by document (McNemar's where "
            f"answers are right or wrong), 5 % after Holm's correction over {over} of its column."
        )
    if bold:
        parts.append(f"Bold: the best of {rivals}.")
    if board.ties:
        parts.append(
            f"{TIE} tied with the best of {rivals}: no significant difference by the same test, corrected over all "
            "pairs of its rows."
        )
    if any(entry.repeats for entry in board.entries):
        parts.append(f"Rows of several seeds are means; {SPREAD}: standard deviation over seeds.")
    return " ".join(parts)


def remarks(board: Leaderboard) -> list[str]:
    """Notes on the table's rows: selection, updates, other environments, missing samples, baselines below chance."""
    notes = selection.remarks(board)
    for base in sorted({entry.row.delta for entry in board.entries if entry.row.delta and not entry.baseline}):
        notes.append(
            f"Updates of {clean(base)} are edited: errors and keep targets refer to W − W_base, keep model to the "
            "parameters stored in addition to the base; the method “base” has the base's weights."
        )
    if board.other_environment:
        rows = "1 row was" if board.other_environment == 1 else f"{board.other_environment} rows were"
        notes.append(f"{rows} scored in another environment than the baseline.")
    if board.without_samples:
        notes.append(
            "Samples of 1 cell are missing: its difference has no paired error."
            if board.without_samples == 1
            else f"Samples of {board.without_samples} cells are missing: their differences have no paired errors."
        )
    for model, task, value, chance in board.below_chance:
        notes.append(
            f"{clean(model)}, baseline, is below chance on {clean(task)} (accuracy {100 * value:.1f} %, chance "
            f"{100 * chance:.1f} %): a gain there may be a mere return to chance."
        )
    if board.left_out:
        notes.append(f"{board.left_out} more rows are left out here.")
    return notes


def by_reason(names: Iterable[tuple[str, str]]) -> list[str]:
    """(name, reason) pairs with one line per reason: `NAME and 3 more (REASON)`."""
    reasons: dict[str, list[str]] = {}
    for name, reason in names:
        reasons.setdefault(reason, []).append(name)
    return [
        f"{first}{f' and {len(others)} more' if others else ''} ({reason})"
        for reason, (first, *others) in reasons.items()
    ]


def failure(entry: Entry) -> dict[str, str]:
    """A cell that was not scored: `name`, `status`, `reason`."""
    words = (str(entry.values[name] or "") for name in ("model", "method", "setting", "edited"))
    return {
        "name": " ".join(word for word in words if word),
        "status": entry.row.status,
        "reason": entry.row.reason or "no reason was given",
    }


def pieces(column: Column, value: Value) -> tuple[str, str, str]:
    """A value in three parts: the value, `±` its error (and `σ` over seeds), its difference; empty if missing."""
    if not isinstance(value, Measurement):
        return plain(column, value), "", ""
    scale = 100.0 if column.kind == "share" else 1.0
    errors = [
        f"{sign}{number(error * scale, column)}"
        for sign, error in (("±", value.stderr), (SPREAD, value.spread))
        if error is not None and math.isfinite(error)
    ]
    delta = signed(value.delta * scale, column) if value.delta is not None else ""
    return (
        number(value.value * scale, column),
        " ".join(errors),
        f"{delta}{SIGNIFICANT}" if delta and value.significant else delta,
    )


def interval(column: Column, value: Value) -> str:
    """A score's difference with its interval and p-value, as text; empty if unknown."""
    if not isinstance(value, Measurement) or value.delta is None or value.interval is None:
        return ""
    scale = 100.0 if column.kind == "share" else 1.0
    low, high = (signed(end * scale, column) for end in value.interval)
    p = value.p_value if value.p_holm is None else value.p_holm
    tested = f"; p = {p_value(p)}{' (Holm)' if value.p_holm is not None else ''}" if p is not None else ""
    return f"Δ {signed(value.delta * scale, column)}, 95 % interval {low} to {high}{tested}"


def direction(column: Column, value: Value) -> str:
    """`better` or `worse` for a significant difference from the baseline, else empty."""
    if not isinstance(value, Measurement) or not value.significant or not value.delta:
        return ""
    return "better" if (value.delta > 0) == (column.better == "higher") else "worse"


def p_value(p: float) -> str:
    """A p-value with two digits."""
    return "<1e-12" if p < 1e-12 else f"{p:.2g}"


def plain(column: Column, value: Value) -> str:
    """A value without error and difference."""
    if isinstance(value, Measurement):
        return pieces(column, value)[0]
    if value is None or value == "":
        return MISSING if column.kind != "text" else ""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, bool):
        return PARETO if value else ""
    return number(value, column)


def headings(board: Leaderboard) -> dict[str, tuple[str, str]]:
    """Column -> its two header lines; tasks without their common prefix, accuracies with their unit."""
    tasks = [column for column in board.columns if column.task]
    prefix = shared_prefix(board)
    result = {column.name: column.heading for column in board.columns}
    for column in tasks:
        metric = column.metric.replace("perplexity", "ppl")
        metric += " %" if column.kind == "share" else " ↓" if column.better == "lower" else ""
        result[column.name] = column.task.removeprefix(prefix), metric
    for column in board.columns:
        if not column.task and column.kind == "share":
            result[column.name] = column.heading[0], f"{column.heading[1]} %"
    return {name: (clean(first), clean(second)) for name, (first, second) in result.items()}


def shared_prefix(board: Leaderboard) -> str:
    """The common prefix of all task names, up to an underscore: `almanac_`; empty for a single task."""
    names = [column.task for column in board.columns if column.task]
    if len(names) < 2:
        return ""
    words = [name.split("_")[:-1] for name in names]
    common = 0
    while all(len(parts) > common and parts[common] == words[0][common] for parts in words):
        common += 1
    return "".join(f"{word}_" for word in words[0][:common])


def number(value: float, column: Column) -> str:
    """A number rounded for display."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    match column.kind:
        case "share":
            return f"{value:.1f}"
        case "ratio" | "error":
            return f"{value:.3f}"
        case "loss":
            return "<0.0001" if 0 < size < 0.00005 else f"{value:.4f}"
        case "times":
            return f"{value:.2f}x" if size < 100 else f"{value:,.0f}x"
        case "seconds":
            if 0 < size < 0.0005:
                return "<0.001"
            return f"{value:.3f}" if size < 1 else f"{value:.2f}" if size < 10 else f"{value:,.1f}"
    if size >= 1e6:
        return f"{value:.1e}"
    return f"{value:.2f}" if size < 100 else f"{value:,.1f}" if size < 10000 else f"{value:,.0f}"


def signed(value: float, column: Column) -> str:
    """The number with its sign, except for zero."""
    text = number(abs(value), column)
    if text == MISSING or not any(digit in text for digit in "123456789∞"):
        return text
    return f"+{text}" if value > 0 else f"−{text}"
