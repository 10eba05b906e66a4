"""Computes metrics from a model's answers, with the tasks' own code."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import acc_all, acc_all_stderr, mean, mean_stderr

from lrbench.errors import EvaluationError
from lrbench.results.rows import Score
from lrbench.stats import jackknife_stderr
from lrbench.tasks.frozen_requests import FrozenRequests, FrozenTask

#: lm-eval's standard errors in closed form; its `stderr_for_metric` would also bootstrap other metrics.
CLOSED_FORM: dict[Callable, Callable] = {mean: mean_stderr, acc_all: acc_all_stderr}

TaskScores = dict[str, dict[str, Score]]  # task or group -> metric -> score
Samples = list[dict[str, Any]]  # as in `Outcome.samples`
RawMetrics = dict[tuple[str, str], list[Any]]  # (metric, filter) -> one value per document


@dataclass
class Answers:
    """Answers to the `pair_requests`, `rolling_requests` and `prompts` of `FrozenRequests`, in their order."""

    pairs: list[tuple[float, bool]] = field(default_factory=list)
    rolling: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def score(requests: FrozenRequests, answers: Answers) -> tuple[TaskScores, Samples]:
    """Scores and per-document results, as lm-eval computes them.

    Raises:
        EvaluationError: a log-likelihood is not finite.
    """
    _hand_out(requests, answers)
    raw: dict[str, RawMetrics] = {}
    samples: Samples = []
    for name, frozen in requests.tasks.items():
        raw[name], documents = _process(frozen)
        samples += documents
    return aggregate(requests, raw), samples


def aggregate(requests: FrozenRequests, raw: dict[str, RawMetrics]) -> TaskScores:
    """Scores of tasks and groups from the values of their documents.

    Means have lm-eval's standard error; metrics for which lm-eval would bootstrap (perplexities, F1, ...) have a block
    jackknife's; groups pool the errors of their tasks as lm-eval does.
    """
    table: dict[str, dict[str, Any]] = {}  # as lm-eval's groups read it
    scores: TaskScores = {}
    for name, metrics in raw.items():
        task = requests.tasks[name].task
        table[name] = {"sample_len": max(map(len, metrics.values()), default=0)}
        scores[name] = {}
        for (metric, filter_name), values in metrics.items():
            aggregation = task.aggregation().get(metric, mean)
            value, stderr = _value(aggregation, values), _stderr(aggregation, values)
            table[name][f"{metric},{filter_name}"] = value
            table[name][f"{metric}_stderr,{filter_name}"] = "N/A" if stderr is None else stderr
            scores[name][metric_name(metric, filter_name)] = Score(value=value, stderr=stderr, n=len(values))
    for name, group in requests.groups.items():
        if group.has_aggregation:
            pooled = dict(group.aggregate(table))
            scores[name] = {
                metric_name(*key.split(",", 1)): Score(
                    value=float(pooled[key]), stderr=_number(pooled[key.replace(",", "_stderr,", 1)]), n=n
                )
                for key, n in pooled.get("sample_count", {}).items()
            }
    return scores


def aggregate_samples(requests: FrozenRequests, samples: Samples) -> TaskScores:
    """Scores from the per-document results of `score`, for all documents of the requests."""
    raw: dict[str, RawMetrics] = {name: {} for name in requests.tasks}
    for entry in samples:
        for name, value in entry["metrics"].items():
            metric, _, filter_name = name.partition(",")
            raw[entry["task"]].setdefault((metric, filter_name or "none"), []).append(value)
    return aggregate(requests, raw)


def metric_name(metric: str, filter_name: str) -> str:
    """The metric's name in rows: `acc` for the filter `none`, else with the filter, `exact_match,strict`."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def sample(task: str, document: int, metrics: dict[str, Any], responses: list[list[Any]]) -> dict[str, Any]:
    """The results of a document as JSON data.

    Args:
        task: the task's name.
        document: the document's index.
        metrics: metric -> the document's value: a number, or for metrics of a whole set (perplexities, F1) the tuple
            from which the set's value is computed.
        responses: the model's answers to each request, one per repetition.

    Raises:
        EvaluationError: a log-likelihood is not finite.
    """
    out: dict[str, Any] = {"task": task, "doc": document, "metrics": {k: _plain(v) for k, v in metrics.items()}}
    first = responses[0][0]
    if isinstance(first, str):
        texts = [text for request in responses for text in request]
        out["text"] = texts[0] if len(texts) == 1 else texts
        return out
    if isinstance(first, tuple | list):
        out["loglikelihoods"] = [float(request[0][0]) for request in responses]
        out["greedy"] = [bool(request[0][1]) for request in responses]
    else:
        out["loglikelihoods"] = [float(request[0]) for request in responses]
    for value in out["loglikelihoods"]:
        if not math.isfinite(value):
            raise EvaluationError(
                f"{task}, document {document}: the log-likelihood is {value}; the weights hold NaN or overflow "
                "their dtype (repair the checkpoint, or try float32 or another rank)"
            )
    return out


def _hand_out(requests: FrozenRequests, answers: Answers) -> None:
    """Replaces the answers of all requests, since filters read the first answer."""
    for frozen in requests.tasks.values():
        for instance in frozen.instances:
            instance.resps = []
            instance.filtered_resps = {}
    for instances, responses in (
        (requests.pair_requests, answers.pairs),
        (requests.rolling_requests, answers.rolling),
        (requests.prompts, answers.texts),
    ):
        for instance, answer in zip(instances, responses, strict=True):
            instance.resps.append(answer)


def _process(frozen: FrozenTask) -> tuple[RawMetrics, Samples]:
    task = frozen.task
    task._instances = frozen.instances  # another engine may have replaced them
    by_document: dict[int, list[Instance]] = defaultdict(list)
    for instance in frozen.instances:
        by_document[instance.doc_id].append(instance)
    for instances in by_document.values():
        instances.sort(key=lambda instance: instance.idx)
    raw: RawMetrics = defaultdict(list)
    metrics: dict[int, dict[str, Any]] = {document: {} for document in by_document}
    # first, since it rejects log-likelihoods that are not finite, before the task's code sees them
    samples = [
        sample(frozen.name, document, {}, [i.resps for i in instances]) for document, instances in by_document.items()
    ]
    task.apply_filters()
    for filter_name in frozen.instances[0].filtered_resps:
        for document, instances in by_document.items():
            filtered = [instance.filtered_resps[filter_name] for instance in instances]
            for metric, value in task.process_results(instances[0].doc, filtered).items():
                raw[metric, filter_name].append(value)
                metrics[document][metric_name(metric, filter_name)] = _plain(value)
    for entry in samples:
        entry["metrics"] = metrics[entry["doc"]]
    annotate(samples, frozen)
    return dict(raw), samples


def annotate(samples: Samples, frozen: FrozenTask) -> None:
    """Adds gold answers (`gold`) and groups (`group`) to a task's per-document results."""
    for entry in samples:
        if entry["doc"] in frozen.gold:
            entry["gold"] = frozen.gold[entry["doc"]]
        if entry["doc"] in frozen.groups:
            entry["group"] = frozen.groups[entry["doc"]]


def _value(aggregation: Callable[[list[Any]], float], values: list[Any]) -> float:
    try:
        return float(aggregation(values))
    except OverflowError:  # the exponential of a perplexity
        return math.inf


def _stderr(aggregation: Callable[[list[Any]], float], values: list[Any]) -> float | None:
    if len(values) < 2:
        return None
    if aggregation in CLOSED_FORM:
        return _number(CLOSED_FORM[aggregation](values))
    return jackknife_stderr(values, aggregation)


def _number(value: Any) -> float | None:
    """A standard error as float; None for lm-eval's 'N/A' and for values that are not finite."""
    return None if isinstance(value, str) or not math.isfinite(value) else float(value)


def _plain(value: Any) -> Any:
    """A metric's value as JSON data."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
