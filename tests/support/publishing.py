"""Runs for the tests of sites: of single weights, and of names that someone chose in bad faith."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from lrbench.analysis import table
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Row
from tests.support.synthetic_run import demo_run, edit, row, samples_of, scores_of

MODEL = "<script>alert(1)</script>"
HOSTILE = [
    *("javascript:alert(1)", '"><img src=x onerror=alert(1)>', "../../etc/passwd", "\x1b[31mred\x1b[0m\x00\u202e"),
    *("n" * 300, "' onclick='x", "</script><b>", "{{ 7*7 }}", "datum.x'; \\ \u2028", "con"),
]


def each_run(
    path: Path, layers: int = 4, roles: Sequence[str] = ("attn.q", "attn.o", "mlp.up", "mlp.down")
) -> RunDirectory:
    """A sweep that edits one weight at a time, on two tasks."""
    run = RunDirectory(path)
    dice = random.Random(1)
    difficulty = {task: [dice.random() for _ in range(60)] for task in ("facts", "agreement")}
    run.write_manifest(
        {
            "tasks": [{"task": task, "subtasks": [task]} for task in difficulty],
            "models": [{"label": "almanac", "blocks": layers}],
        }
    )

    def add(given: object, skill: float) -> None:
        correct = {task: [float(x < skill) for x in xs] for task, xs in difficulty.items()}
        run.write_samples(given.cell, samples_of(correct))
        run.append(given.model_copy(update={"scores": scores_of(correct)}))

    add(row("base"), 0.9)
    for method in ("svd", "id"):
        for layer in range(layers):
            for place, role in enumerate(roles):
                error = 0.2 + 0.1 * place + 0.02 * layer
                add(
                    row(
                        f"{method}-{layer}-{role}",
                        reducer=method,
                        label=method,
                        mode="each",
                        requested={"fraction": 0.1},
                        edits=[edit(layer, role, relative_error=error, optimal_error=0.9 * error)],
                        keep_targets=0.2,
                        keep_model=0.98,
                        decompose_seconds=0.01 * (1 + place),
                    ),
                    0.9 - 0.1 * (place + layer / layers),
                )
    return run


def hostile_run(path: Path) -> RunDirectory:
    """A run whose model, methods, weights, reasons and suite are called what nobody should call them."""
    known = [f"method{place}" for place in range(len(HOSTILE))]
    run = demo_run(path, model="known", methods=known)
    names = dict(zip(known, HOSTILE, strict=True))
    lines = []
    for line in run.rows_file.read_text(encoding="utf-8").splitlines():
        data = json.loads(line)
        data |= {"model": MODEL, "suite": MODEL, "label": names.get(data["label"], data["label"])}
        data["params"] = {MODEL: "\x1b]0;title\x07"}
        if data["status"] != "ok":
            data["reason"] = f"<b>bold</b>\x1b[1m{'x' * 300}"
        for entry in data["edits"]:
            entry["weight"] = MODEL + entry["weight"]
        lines.append(json.dumps(data))
    run.rows_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    manifest = run.manifest()
    manifest["models"][0]["label"] = MODEL
    manifest["models"][0]["engine"] = {MODEL: {MODEL: [MODEL]}}
    manifest["suite"] = {"name": MODEL, "models": "</pre></code><script>alert(2)</script>\x1b[2J"}
    run.write_manifest(manifest)
    return run


def select_by_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes rows whose cell ends in 0.75, and the one called baseline, for those that a choice was made on."""

    def split_of(row: Row) -> str:
        return "validation" if row.cell.endswith("0.75") or row.cell == "baseline" else "test"

    monkeypatch.setattr(table, "split_of", split_of)
