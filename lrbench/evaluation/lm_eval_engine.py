"""Scores cells with lm-eval's own evaluator: slow, the reference for the other engines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lm_eval.evaluator import evaluate

from lrbench.evaluation.base_engine import BaseEngine
from lrbench.evaluation.interface import Job
from lrbench.tasks.frozen_requests import FrozenTask
from lrbench.tasks.score import RawMetrics, Samples, TaskScores, aggregate, annotate, metric_name, sample


class HarnessEngine(BaseEngine):
    """Calls `lm_eval.evaluator.evaluate` for every cell, which rebuilds and tokenises the requests each time.

    The values are lm-eval's. The standard errors are lrbench's, because lm-eval would bootstrap them.
    """

    name = "harness"

    def measure(self, job: Job) -> tuple[TaskScores, Samples]:
        """Runs one evaluation by lm-eval. Raises EvaluationError if an answer is not finite."""
        self.check_generation()
        tasks = self.requests.tasks
        for task in self.tasks.tasks.values():
            task.set_fewshot_seed(seed=self.seed)
        with ExitStack() as stack:
            for name, frozen in tasks.items():
                stack.enter_context(_built_from_all_documents(frozen, self.tasks.limits[name]))
            results = evaluate(
                lm=self.lm,
                task_dict={
                    "tasks": {name: self.tasks.tasks[name] for name in tasks},
                    "groups": self.requests.groups,
                },
                samples={name: frozen.indices for name, frozen in tasks.items()},
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=self.chat_template,
                fewshot_as_multiturn=self.chat_template,
            )
        raw: dict[str, RawMetrics] = {}
        samples: Samples = []
        for name in tasks:
            raw[name], documents = _read(name, results["samples"][name])
            annotate(documents, tasks[name])
            samples += documents
        return self._with_lm_eval_values(results["results"], aggregate(self.requests, raw)), samples

    def _with_lm_eval_values(self, results: dict[str, dict[str, Any]], scores: TaskScores) -> TaskScores:
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
def _built_from_all_documents(frozen: FrozenTask, limit: int | None) -> Iterator[None]:
    """Makes lm-eval build requests for all documents (or the first `limit`), then keeps those of `frozen`.

    lm-eval draws few-shot examples document by document, so building for a subset would draw other examples.
    """
    task, build = frozen.task, frozen.task.build_all_requests
    places = {index: place for place, index in enumerate(frozen.indices)}  # lm-eval counts from 0

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
    """Metric values and per-document samples from lm-eval's log, which has an entry per document and filter."""
    raw: RawMetrics = defaultdict(list)
    documents: dict[int, dict[str, Any]] = {}
    for entry in logged:
        metrics = {metric_name(metric, entry["filter"]): entry[metric] for metric in entry["metrics"]}
        for metric in entry["metrics"]:
            raw[metric, entry["filter"]].append(entry[metric])
        entry_sample = sample(name, entry["doc_id"], metrics, entry["resps"])
        documents.setdefault(entry["doc_id"], entry_sample)["metrics"].update(entry_sample["metrics"])
    return dict(raw), list(documents.values())
