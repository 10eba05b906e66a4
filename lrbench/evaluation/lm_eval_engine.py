"""Scores cells with lm-eval's own evaluator: slow, and what the other engines are compared with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lm_eval.evaluator import evaluate

from lrbench.evaluation.base_engine import BoundEngine
from lrbench.evaluation.interface import Job
from lrbench.tasks.frozen_requests import FrozenTask
from lrbench.tasks.score import RawMetrics, Samples, Scores, aggregate, annotate, metric_name, sample


class HarnessEngine(BoundEngine):
    """`lm_eval.evaluator.evaluate` for every cell: builds, tokenises, scores and aggregates anew each time.

    The values are lm-eval's; only the standard errors, for which it would bootstrap, are lrbench's.
    """

    name = "harness"

    def measure(self, job: Job) -> tuple[Scores, Samples]:
        """One whole evaluation by lm-eval. Raises EvaluationError where an answer is not finite."""
        self.check_generation()
        asked = self.requests.tasks
        for task in self.tasks.tasks.values():
            task.set_fewshot_seed(seed=self.seed)
        with ExitStack() as stack:
            for name, frozen in asked.items():
                stack.enter_context(_as_among_all(frozen, self.tasks.limits[name]))
            results = evaluate(
                lm=self.lm,
                task_dict={"tasks": {name: self.tasks.tasks[name] for name in asked}, "groups": self.requests.groups},
                samples={name: frozen.indices for name, frozen in asked.items()},
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=self.chat_template,
                fewshot_as_multiturn=self.chat_template,
            )
        raw: dict[str, RawMetrics] = {}
        samples: Samples = []
        for name in asked:
            raw[name], documents = _read(name, results["samples"][name])
            annotate(documents, asked[name])
            samples += documents
        return self._with_values_of(results["results"], aggregate(self.requests, raw)), samples

    def _with_values_of(self, results: dict[str, dict[str, Any]], scores: Scores) -> Scores:
        reported = {
            name: {metric_name(*key.split(",", 1)): value for key, value in metrics.items() if "," in key}
            for name, metrics in results.items()
        }
        return {
            name: {
                metric: score.model_copy(update={"value": float(reported[name][metric])})
                for metric, score in metrics.items()
            }
            for name, metrics in scores.items()
        }


@contextmanager
def _as_among_all(frozen: FrozenTask, limit: int | None) -> Iterator[None]:
    """Has lm-eval ask about a task's documents what it asks about them among all, or among the first `limit`.

    It draws few-shot examples document after document, so that on some documents alone it would draw others.
    """
    task, build = frozen.task, frozen.task.build_all_requests
    places = {index: place for place, index in enumerate(frozen.indices)}  # lm-eval numbers what it goes through

    def build_some(**options: Any) -> None:
        build(**{**options, "samples": None, "limit": limit})
        task._instances = [instance for instance in task.instances if instance.doc_id in places]
        for instance in task._instances:
            instance.doc_id = places[instance.doc_id]

    task.build_all_requests = build_some
    try:
        yield
    finally:
        del task.build_all_requests


def _read(name: str, logged: list[dict[str, Any]]) -> tuple[RawMetrics, Samples]:
    """Values and per-document results from lm-eval's logged samples: one entry a document and filter."""
    raw: RawMetrics = defaultdict(list)
    documents: dict[int, dict[str, Any]] = {}
    for entry in logged:
        metrics = {metric_name(metric, entry["filter"]): entry[metric] for metric in entry["metrics"]}
        for metric in entry["metrics"]:
            raw[metric, entry["filter"]].append(entry[metric])
        own = sample(name, entry["doc_id"], metrics, entry["resps"])
        documents.setdefault(entry["doc_id"], own)["metrics"].update(own["metrics"])
    return dict(raw), list(documents.values())
