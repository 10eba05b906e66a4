"""Runs that no model made: rows and samples with known numbers, for the tests of tables."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Edit, Row, Score

ROLES = ("mlp.gate", "mlp.up", "mlp.down")
SUBTASKS = ("almanac_facts_frequent", "almanac_facts_middle", "almanac_facts_rare")


def edit(layer: int | None = 0, role: str | None = "mlp.down", **changes: Any) -> Edit:
    values: dict[str, Any] = {
        "weight": f"model.layers.{layer}.{role}.weight",
        "layer": layer,
        "role": role,
        "shape": (64, 128),
        "rank": 16,
        "stored_numbers": 16 * 192,
        "stored_bytes": 4 * 16 * 192,
        "stored_as": "factors",
        "relative_error": 0.3,
        "optimal_error": 0.25,
    }
    return Edit(**{**values, **changes})


def row(cell: str, *, status: str = "ok", **changes: Any) -> Row:
    return Row(**{"cell": cell, "status": status, "environment": "e0", "suite": "demo", "model": "almanac", **changes})


def scores_of(correct: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Score]]:
    """Accuracy per task from per-document ones and zeros."""
    return {
        task: {"acc": Score(value=_mean(values), stderr=_stderr(values), n=len(values))}
        for task, values in correct.items()
    }


def samples_of(correct: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    return [
        {"task": task, "doc": doc, "metrics": {"acc": value}}
        for task, values in correct.items()
        for doc, value in enumerate(values)
    ]


def simple_run(path: Path, cells: Sequence[tuple[Row, Mapping[str, Sequence[float]]]]) -> RunDirectory:
    """A run of rows given with their per-document accuracies."""
    run = RunDirectory(path)
    for given, correct in cells:
        run.write_samples(given.cell, samples_of(correct))
        run.append(given.model_copy(update={"scores": scores_of(correct)}))
    return run


def demo_run(path: Path, model: str = "almanac", methods: Sequence[str] = (), failures: bool = True) -> RunDirectory:
    """The quickstart in looks: a baseline, six methods at three keeps, a group with subtasks, a perplexity."""
    run = RunDirectory(path)
    run.write_manifest(
        {
            "tasks": [
                {"task": "almanac_facts", "subtasks": list(SUBTASKS)},
                {"task": "almanac_agreement", "subtasks": ["almanac_agreement"]},
                {"task": "almanac_text", "subtasks": ["almanac_text"]},
            ],
            "models": [{"label": model, "blocks": 8}],
        }
    )
    dice = random.Random(0)
    difficulty = {task: [dice.random() for _ in range(500)] for task in (*SUBTASKS, "almanac_agreement")}
    words = [dice.randint(40, 90) for _ in range(60)]

    def scored(damage: float) -> tuple[dict[str, dict[str, Score]], list[dict[str, Any]]]:
        skill = dict(zip(difficulty, (0.985, 0.88, 0.62, 0.96), strict=True))
        correct = {
            task: [float(x < skill[task] * (1 - damage * (0.3 + dice.random()))) for x in xs]
            for task, xs in difficulty.items()
        }
        scores = scores_of(correct)
        facts = [value for task in SUBTASKS for value in correct[task]]
        text = [[-w * (2.1 + 3 * damage + 0.1 * dice.random()), w] for w in words]
        perplexity = math.exp(-sum(x for x, _ in text) / sum(words))
        samples = samples_of(correct)
        samples += [
            {"task": "almanac_text", "doc": doc, "metrics": {"word_perplexity": pair}} for doc, pair in enumerate(text)
        ]
        return {
            "almanac_facts": {"acc": Score(value=_mean(facts), stderr=_stderr(facts), n=len(facts))},
            **scores,
            "almanac_text": {"word_perplexity": Score(value=perplexity, stderr=None, n=len(words))},
        }, samples

    scores, samples = scored(0.0)
    run.write_samples("baseline", samples)
    run.append(row("baseline", model=model, scores=scores, evaluate_seconds=1.4))
    methods = methods or ("svd", "laser-svd", "id", "cr", "cur", "random-columns")
    for place, method in enumerate(methods):
        for keep in (0.75, 0.5, 0.25):
            scores, samples = scored((1 - keep) ** 2 * (0.2 + 0.25 * place))
            optimum = 0.6 * (1 - keep)
            cell = f"{method}-{keep}"
            run.write_samples(cell, samples)
            run.append(
                row(
                    cell,
                    model=model,
                    reducer=method,
                    label=method,
                    mode="together",
                    requested={"keep": keep},
                    edits=[
                        edit(
                            layer,
                            role,
                            rank=int(100 * keep),
                            optimal_error=optimum,
                            relative_error=min(1.0, optimum * (1 + 0.15 * place)),
                        )
                        for layer in range(8)
                        for role in ROLES
                    ],
                    keep_targets=keep - 0.003,
                    keep_model=1 - 0.6 * (1 - keep),
                    compression_ratio=1 / (1 - 0.6 * (1 - keep)),
                    decompose_seconds=0.9 / (1 + place) ** 2,
                    evaluate_seconds=1.5,
                    scores=scores,
                )
            )
    if failures:
        run.append(
            row(
                "broken",
                model=model,
                status="failed",
                reason="reducer 'mine' on model.layers.0.mlp.up_proj.weight: returned shape (64, 3), not (64, 128)",
                reducer="mine",
                label="mine",
                requested={"keep": 0.5},
            )
        )
        run.append(row("skip", model=model, status="skipped", reason="needs a square weight", reducer="monarch"))
    return run


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _stderr(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1) / len(values))
