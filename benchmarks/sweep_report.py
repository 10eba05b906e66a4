"""The figures of `sweep.py` as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from lrbench.system.environment import in_words

WIDTH = 180  # tables are for files and logs as much as for terminals


def show(report: dict[str, Any]) -> None:
    """Prints what was measured, and how much of it was extrapolated."""
    console = Console(width=WIDTH, highlight=False)
    console.print(f"{in_words(report['environment'])}; {report['environment']['threads']} threads")
    console.print(f"{report['config']}, random weights, {report['dtype']}; engine {report['engine']}")
    if report["quick"]:
        console.print("[bold]--quick: too few documents and cells to quote[/bold]")
    console.print(_sweeps(report["sweeps"]), _details(report["sweeps"]))
    for sweep in report["sweeps"]:
        for note in _notes(sweep, report["batch_size_lm_eval"]):
            console.print(note)


def _sweeps(sweeps: list[dict[str, Any]]) -> Table:
    table = _table(
        "Wall time of a sweep",
        "workload", "vocabulary", "blocks", "cells", "engine s", "floor s", "engine/floor",
        "lm-eval s *", "× lm-eval", "LASER s *", "× LASER", "largest Δ",
    )  # fmt: skip
    for sweep in sweeps:
        lm_eval, laser, targets = sweep["lm_eval"], sweep.get("laser", {}), sweep["targets"]
        difference = lm_eval.get("largest_difference")
        table.add_row(
            sweep["workload"], f"{sweep['vocabulary']:,}", sweep["blocks"], str(sweep["cells"]),
            _seconds(sweep["engine_seconds"]), _seconds(sweep["floor_seconds"]),
            _ratio(sweep["engine_over_floor"], "≤", targets.get("engine_over_floor"), 2),
            _seconds(lm_eval.get("extrapolated_seconds")),
            _ratio(lm_eval.get("ratio"), "≥", targets.get("lm_eval_ratio"), 1),
            _seconds(laser.get("extrapolated_seconds")), _ratio(laser.get("ratio"), "", None, 1),
            f"{difference['absolute']:.1e}" if difference else "–",
        )  # fmt: skip
    table.caption = (
        "* timed on some cells and requests, and extrapolated linearly: see the notes. In brackets: targets."
    )
    return table


def _details(sweeps: list[dict[str, Any]]) -> Table:
    table = _table(
        "Where the time goes",
        "workload", "vocabulary", "blocks", "set-up s", "s/cell/block", "its floor", "s/cell", "its floor",
        "frontier s", "tokens / asked", "head / asked", "GFLOP/s", "of peak",
    )  # fmt: skip
    for sweep in sweeps:
        tokens, gemm, slope = sweep["tokens"], sweep["gemm"], sweep["slope"]
        head = tokens["head_positions_computed"]
        table.add_row(
            sweep["workload"], f"{sweep['vocabulary']:,}", sweep["blocks"], _seconds(sweep["setup_seconds"]),
            _seconds(slope["seconds_per_cell_and_block"]), _seconds(sweep["floor_cell_and_block_seconds"]),
            _seconds(slope["seconds_per_cell"]), _seconds(sweep["floor_head_seconds"]),
            _seconds(sweep["frontier_seconds"]),
            f"{tokens['block_tokens_computed'] / tokens['block_tokens_asked']:.2f}",
            f"{head / tokens['head_positions_asked']:.2f}" if head else "not seen",
            f"{gemm['flops_per_second'] / 1e9:,.0f}", f"{gemm['flops_per_second'] / gemm['peak']:.0%}",
        )  # fmt: skip
    return table


def _notes(sweep: dict[str, Any], batch_size: int) -> list[str]:
    """What stands behind one row's numbers."""
    tokens, lm_eval, laser = sweep["tokens"], sweep["lm_eval"], sweep.get("laser")
    where = f"{sweep['workload']}, {sweep['vocabulary']:,}, {sweep['blocks']}"
    notes = [
        f"{where}: {sweep['documents']:,} documents ({sweep['about']}), {tokens['requests']:,} requests of "
        f"{tokens['request_tokens']:,} tokens, {tokens['shared_tokens']:,} with contexts shared; "
        f"{sweep['edits_per_block']} edits of blocks {', '.join(map(str, sweep['blocks_edited']))} of "
        f"{sweep['blocks_of_model']}"
    ]
    if engine := sweep["engine"].get("sweep"):
        fell = "; ".join(map(str, engine.get("fallbacks", []))) or "none"
        notes.append(f"  engine: {engine.get('mode')}, {engine.get('parts')} part(s), fall-backs: {fell}")
    if lm_eval["seconds_per_cell"]:
        timed = ", ".join(f"{seconds:.1f}" for seconds in lm_eval["seconds_per_cell"])
        notes.append(f"  lm-eval (batch {batch_size}) timed on {lm_eval['cells_timed']} cells: {timed} s")
        notes.append(f"  with the engine's set-up counted, {lm_eval['ratio_with_setup']:.1f} times lm-eval")
    elif lm_eval["reason"]:
        notes.append(f"  lm-eval not timed: {lm_eval['reason']}")
    if laser:
        notes.append(
            f"  LASER's way: {laser['start_seconds']:.1f} s to start, {laser['request_seconds'] * 1e3:.1f} ms a "
            f"request, timed in one process on {laser['requests']} requests"
        )
    if sweep.get("laser_sweep_predicted"):
        predicted = sweep["laser_sweep_predicted"]
        notes.append(
            f"  LASER's published sweep, by the fitted line: {predicted['prompts']:,} prompts, "
            f"{predicted['blocks']} blocks × {predicted['edits_per_block']} edits: {predicted['seconds'] / 3600:.1f} h "
            "of scoring"
        )
    return notes


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index in (0, 2) else "right", no_wrap=True)
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float | None, sign: str, target: float | None, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" + (f" ({sign} {target:g})" if target else "")
