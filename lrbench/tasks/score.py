"""From a model's answers to metrics, by the tasks' own code."""

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

#: lm-eval's closed forms. Its `stderr_for_metric` would give them only together with bootstraps for other metrics.
CLOSED_FORM: dict[Callable, Callable] = {mean: mean_stderr, acc_all: acc_all_stderr}

Scores = dict[str, dict[str, Score]]  # task or group -> metric -> score
Samples = list[dict[str, Any]]  # as in `Outcome.samples`
RawMetrics = dict[tuple[str, str], list[Any]]  # (metric, filter) -> one value a document


@dataclass
class Answers:
    """A model's answers to `FrozenRequests`, in the order of its `asked_pairs`, `asked_rolling` and `prompts`."""

    pairs: list[tuple[float, bool]] = field(default_factory=list)
    rolling: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def score(requests: FrozenRequests, answers: Answers) -> tuple[Scores, Samples]:
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


def aggregate(requests: FrozenRequests, raw: dict[str, RawMetrics]) -> Scores:
    """Scores of tasks and groups from the values of their documents.

    A mean has lm-eval's standard error; what lm-eval gives none without a bootstrap (perplexities, F1, ...) has a
    blockwise jackknife's; groups pool those of their tasks as lm-eval does.
    """
    table: dict[str, dict[str, Any]] = {}  # as lm-eval's groups read it
    scores: Scores = {}
    for name, metrics in raw.items():
        task = requests.tasks[name].task
        table[name] = {"sample_len": max(map(len, metrics.values()), default=0)}
        scores[name] = {}
        for (metric, filter_name), values in metrics.items():
            how = task.aggregation().get(metric, mean)
            value, stderr = _value(how, values), _stderr(how, values)
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


def aggregate_samples(requests: FrozenRequests, samples: Samples) -> Scores:
    """Scores from per-document results as `score` gives them, of all documents of the requests."""
    raw: dict[str, RawMetrics] = {name: {} for name in requests.tasks}
    for entry in samples:
        for name, value in entry["metrics"].items():
            metric, _, filter_name = name.partition(",")
            raw[entry["task"]].setdefault((metric, filter_name or "none"), []).append(value)
    return aggregate(requests, raw)


def metric_name(metric: str, filter_name: str) -> str:
    """`acc` where the filter is `none`, else `exact_match,strict`."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def sample(task: str, document: int, metrics: dict[str, Any], responses: list[list[Any]]) -> dict[str, Any]:
    """One document's results, of plain numbers and text.

    Args:
        metrics: metric -> what the task says of this document: a number, or for metrics of a whole set (perplexities,
            F1) the tuple that the set's value is computed from.
        responses: of each request, the model's answers (one for each repetition).

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
    """Gives every request its answers, and takes away those of the weights before: filters read the first they see."""
    for frozen in requests.tasks.values():
        for instance in frozen.instances:
            instance.resps = []
            instance.filtered_resps = {}
    for asked, given in (
        (requests.asked_pairs, answers.pairs),
        (requests.asked_rolling, answers.rolling),
        (requests.prompts, answers.texts),
    ):
        for instance, answer in zip(asked, given, strict=True):
            instance.resps.append(answer)


def _process(frozen: FrozenTask) -> tuple[RawMetrics, Samples]:
    task = frozen.task
    task._instances = frozen.instances  # another engine may have built others since
    by_document: dict[int, list[Instance]] = defaultdict(list)
    for instance in frozen.instances:
        by_document[instance.doc_id].append(instance)
    for instances in by_document.values():
        instances.sort(key=lambda instance: instance.idx)
    raw: RawMetrics = defaultdict(list)
    metrics: dict[int, dict[str, Any]] = {document: {} for document in by_document}
    # before the metrics are computed: an answer that is not finite must not meet the task's code
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
    """Adds to a task's per-document results which choice is right (`gold`) and what they belong to (`group`)."""
    for entry in samples:
        if entry["doc"] in frozen.right:
            entry["gold"] = frozen.right[entry["doc"]]
        if entry["doc"] in frozen.groups:
            entry["group"] = frozen.groups[entry["doc"]]


def _value(how: Callable[[list[Any]], float], values: list[Any]) -> float:
    try:
        return float(how(values))
    except OverflowError:  # the exponential of a perplexity: worse than any number
        return math.inf


def _stderr(how: Callable[[list[Any]], float], values: list[Any]) -> float | None:
    if len(values) < 2:
        return None
    if how in CLOSED_FORM:
        return _number(CLOSED_FORM[how](values))
    return jackknife_stderr(values, how)


def _number(value: Any) -> float | None:
    """lm-eval writes 'N/A' for a standard error that it does not have."""
    return None if isinstance(value, str) or not math.isfinite(value) else float(value)


def _plain(value: Any) -> Any:
    """A metric's value as JSON knows it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
