"""The figures of `decompose.py` as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from lrbench.system.environment import in_words

WIDTH = 180  # tables are for files and logs as much as for terminals


def show(report: dict[str, Any]) -> None:
    """Prints what was measured."""
    console = Console(width=WIDTH, highlight=False)
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    console.print(f"{in_words(report['environment'])}; {versions}; {', '.join(report['libraries'])}")
    if report["quick"]:
        console.print("[bold]--quick: too small to quote[/bold]")
    for entry in report["matrices"]:
        console.print(_matrix(entry, report))
    for found in report.get("crossovers", []):
        for table in found["tables"]:
            console.print(_crossover(table, found["threads"]))
        for constant in found["constants"]:
            console.print(constant)
    notes = {name: one["about"] for entry in report["matrices"] for name, one in entry["methods"].items()}
    for name, about in notes.items():
        if about:
            console.print(f"{name}: {about}")


def _matrix(entry: dict[str, Any], report: dict[str, Any]) -> Table:
    shares = [f"{share:.0%}" for share in report["ranks"]]
    optimum = ", ".join(f"{error:.3f}" for error in entry["optimal_errors"])
    gram = entry.get("gram_seconds")
    table = Table(
        title=f"{entry['name']}, float32, {entry['threads']} thread(s); ranks {', '.join(shares)} of the full one",
        caption=f"seconds for the four ranks together, best of {report['repeats']};"
        f" least relative error possible: {optimum}. In brackets: targets.",
        title_justify="left", caption_justify="left",
    )  # fmt: skip
    columns = ["s", *(["Gram times"] if gram else []), "times faster", "than"]
    columns += [f"error / optimum {share}" for share in shares] + ["peak, in W of float64"]
    table.add_column("method", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="left" if name == "than" else "right")
    for name, one in entry["methods"].items():
        table.add_row(
            name, f"{one['seconds']:.3g}", *([f"{one['seconds'] / gram:.1f}"] if gram else []),
            _bracketed(one.get("speedup"), "≥", one["target"]), one["rival"] or "",
            *(f"{ratio:.4f}" for ratio in one["ratios"]), _bracketed(one.get("peak"), "≤", one.get("peak_target")),
        )  # fmt: skip
    return table


def _crossover(table: dict[str, Any], threads: int) -> Table:
    shown = Table(title=f"{table['title']}; {threads} thread(s)", title_justify="left")
    for column in table["columns"]:
        shown.add_column(column, justify="right", no_wrap=True)
    for row in table["rows"]:
        shown.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))
    return shown


def _bracketed(value: float | None, sign: str, target: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" + (f" ({sign} {target:g})" if target else "")
