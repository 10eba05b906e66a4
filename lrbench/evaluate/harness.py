"""Scores cells with lm-eval's own evaluator: slow, and what the other engines are compared with."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate

from lrbench.evaluate.bound import BoundEngine
from lrbench.evaluate.engine import Job
from lrbench.tasks.groups import group_of
from lrbench.tasks.score import RawMetrics, Samples, Scores, aggregate, metric_name, sample


class HarnessEngine(BoundEngine):
    """`lm_eval.evaluator.evaluate` for every cell: builds, tokenises, scores and aggregates anew each time.

    The values are lm-eval's; only the standard errors, for which it would bootstrap, are lrbench's.
    """

    name = "harness"

    def measure(self, job: Job) -> tuple[Scores, Samples]:
        """One whole evaluation by lm-eval. Raises EvaluationError where an answer is not finite."""
        self.check_generation()
        for task in self.tasks.tasks.values():
            task.set_fewshot_seed(seed=self.seed)
        results = evaluate(
            lm=self.lm,
            task_dict={"tasks": self.tasks.tasks, "groups": self.tasks.groups},
            samples=self._limited(),
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=self.chat_template,
            fewshot_as_multiturn=self.chat_template,
        )
        raw: dict[str, RawMetrics] = {}
        samples: Samples = []
        for name in self.tasks.tasks:
            raw[name], documents = _read(self.tasks.tasks[name], results["samples"][name])
            samples += documents
        return self._with_values_of(results["results"], aggregate(self.requests, raw)), samples

    def _limited(self) -> dict[str, list[int]] | None:
        """The documents of each task that has a limit: `evaluate` knows one limit for all tasks only."""
        chosen = {
            name: list(range(min(limit, len(self.tasks.tasks[name].eval_docs))))
            for name, limit in self.tasks.limits.items()
            if limit is not None
        }
        return chosen or None

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


def _read(task: Task, logged: list[dict[str, Any]]) -> tuple[RawMetrics, Samples]:
    """Values and per-document results from lm-eval's logged samples: one entry a document and filter."""
    raw: RawMetrics = defaultdict(list)
    documents: dict[int, dict[str, Any]] = {}
    for entry in logged:
        metrics = {metric_name(metric, entry["filter"]): entry[metric] for metric in entry["metrics"]}
        for metric in entry["metrics"]:
            raw[metric, entry["filter"]].append(entry[metric])
        own = sample(task.task_name, entry["doc_id"], metrics, entry["resps"], group_of(task, entry["doc"]))
        documents.setdefault(entry["doc_id"], own)["metrics"].update(own["metrics"])
    return dict(raw), list(documents.values())
