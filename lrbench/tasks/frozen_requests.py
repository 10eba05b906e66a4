"""Requests built and tokenised once, for all cells of a run.

lm-eval builds prompts, samples few-shot examples and tokenises at each evaluation, though none of it depends on the
weights. Here lm-eval's code does so once, and the token ids are kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lrbench.errors import TaskError
from lrbench.system.text import one_line
from lrbench.tasks.containment import OTHER_SEED, contained
from lrbench.tasks.documents import gold_answers, groups_of
from lrbench.tasks.saved_datasets import origin_of
from lrbench.tasks.task_set import TaskSet
from lrbench.tasks.token_windows import REQUEST, TokenPerplexity, window_pair
from lrbench.tasks.tokenization import TokenPair, encode, token_pairs

#: keys of a task's config that define its metrics
SCORED_BY = (
    "output_type",
    "metric_list",
    "filter_list",
    "process_results",
    "doc_to_choice",
    "doc_to_target",
    "repeats",
)


@dataclass
class FrozenTask:
    """The requests of a task.

    Attributes:
        instances: all of lm-eval's requests, in lm-eval's order.
        documents: the number of documents.
        indices: the indices of the documents in the task, ascending.
        groups: document -> its group, if the task defines groups.
        gold: document -> index, or indices, of its gold answer, if there are choices.
        tokens: the number of tokens of all requests; repeated contexts count each time.
        truncated: the number of requests longer than the model's maximum length, which lm-eval cuts from the left.
        documents_hash, prompts_hash, tokens_hash, metrics_hash: SHA-256 of the documents, of the requests as text
            (prompts, continuations, generation settings), of the requests as token ids, and of the metrics' definition.
    """

    name: str
    task: Task
    limit: int | None
    instances: list[Instance]
    documents: int = 0
    indices: list[int] = field(default_factory=list)
    groups: dict[int, str | int] = field(default_factory=dict)
    gold: dict[int, int | list[int]] = field(default_factory=dict)
    tokens: int = 0
    truncated: int = 0
    documents_hash: str = ""
    prompts_hash: str = ""
    tokens_hash: str = ""
    metrics_hash: str = ""


@dataclass
class FrozenRequests:
    """The requests of all tasks by kind, in lm-eval's order.

    An engine answers `pairs` and `windows` with (log-likelihood, whether greedy), and `prompts` with text, each in
    order; `lrbench.tasks.score.Answers` holds the answers.

    Attributes:
        pairs: tokenised log-likelihood requests, one for each of `pair_requests`.
        windows: tokenised windows of rolling log-likelihood requests, `window_counts[i]` for `rolling_requests[i]`.
        prompts: generation requests.
    """

    tasks: dict[str, FrozenTask]
    groups: dict[str, Group]
    seed: int
    pairs: list[TokenPair] = field(default_factory=list)
    pair_requests: list[Instance] = field(default_factory=list)
    windows: list[TokenPair] = field(default_factory=list)
    window_counts: list[int] = field(default_factory=list)
    rolling_requests: list[Instance] = field(default_factory=list)
    prompts: list[Instance] = field(default_factory=list)

    def hashes(self) -> dict[str, dict[str, str]]:
        """Task -> SHA-256 (hex) of documents, prompts, tokens and metrics, which with the weights define its result."""
        return {
            name: {
                "documents": task.documents_hash,
                "prompts": task.prompts_hash,
                "tokens": task.tokens_hash,
                "metrics": task.metrics_hash,
            }
            for name, task in self.tasks.items()
        }

    def definition(self) -> dict[str, Any]:
        """The definition of the scores, apart from weights: versions and hashes of tasks, aggregation of groups."""
        tasks = {name: [str(self.tasks[name].task.VERSION), hashes] for name, hashes in self.hashes().items()}
        groups = {
            name: [
                [task.task_name for task in group.get_all_tasks()],
                [dataclasses.asdict(metric) for metric in group.aggregate_metric_list or ()],
            ]
            for name, group in self.groups.items()
        }
        return {"tasks": tasks, "groups": _hash([groups])}

    def split_differently(self) -> bool:
        """Whether two requests have equal tokens except the last, but continuations of different lengths."""
        lengths: dict[int, int] = {}
        return any(
            lengths.setdefault(hash((*context, *continuation[:-1])), len(continuation)) != len(continuation)
            for pairs in (self.pairs, self.windows)
            for _, context, continuation in pairs
        )

    def restricted(self, documents: Mapping[str, Collection[int]]) -> FrozenRequests:
        """The requests of some documents, in the same order, with unchanged prompts and few-shot examples.

        Args:
            documents: task -> indices of its documents; other tasks, and groups with such a task, are left out.
        """
        chosen = {name: set(documents[name]) for name in self.tasks if documents.get(name)}
        groups = {
            name: group
            for name, group in self.groups.items()
            if all(task.task_name in chosen for task in group.get_all_tasks())
        }
        part = FrozenRequests({}, groups, self.seed)

        def selected(instance: Instance) -> bool:
            return instance.doc_id in chosen.get(instance.task_name, ())

        tokens: dict[str, dict[str, list[Any]]] = {name: {} for name in chosen}
        for instance, pair in zip(self.pair_requests, self.pairs, strict=True):
            if selected(instance):
                part.pair_requests.append(instance)
                part.pairs.append(pair)
                tokens[instance.task_name].setdefault("loglikelihood", []).append(pair[1:])
        start = 0
        for instance, count in zip(self.rolling_requests, self.window_counts, strict=True):
            windows = self.windows[start : start + count]
            start += count
            if selected(instance):
                part.rolling_requests.append(instance)
                part.window_counts.append(count)
                part.windows += windows
                tokens[instance.task_name].setdefault("rolling", []).extend(window[1:] for window in windows)
        for instance in self.prompts:
            if selected(instance):
                part.prompts.append(instance)
        for name, ids in chosen.items():
            whole = self.tasks[name]
            instances = [instance for instance in whole.instances if instance.doc_id in ids]
            frozen = dataclasses.replace(whole, instances=instances, limit=None, truncated=0, tokens=0)
            known = [pair for kind in tokens[name].values() for pair in kind]
            frozen.tokens = sum(len(context) + len(continuation) for context, continuation in known)
            frozen.tokens_hash = _hash([whole.tokens_hash, *known])  # prompts to generate from are in the whole's
            frozen.groups = {index: group for index, group in whole.groups.items() if index in ids}
            frozen.gold = {index: gold for index, gold in whole.gold.items() if index in ids}
            _describe(frozen)
            part.tasks[name] = frozen
        return part

    def describe(self) -> dict[str, Any]:
        """For the manifest: hashes, sizes and metrics (metric -> higher is better) of tasks; tasks of groups."""
        tasks = {
            name: {
                "version": str(frozen.task.VERSION),
                "num_fewshot": frozen.task.get_config("num_fewshot"),
                "limit": frozen.limit,
                "documents": frozen.documents,
                "requests": len(frozen.instances),
                "tokens": frozen.tokens,
                "truncated": frozen.truncated,
                "higher_is_better": dict(frozen.task.higher_is_better()),
                **({"window": frozen.task.length} if isinstance(frozen.task, TokenPerplexity) else {}),
                "data": origin_of(frozen.task),
                "hashes": self.hashes()[name],
            }
            for name, frozen in self.tasks.items()
        }
        groups = {name: [task.task_name for task in group.get_all_tasks()] for name, group in self.groups.items()}
        return {"fewshot_seed": self.seed, "tasks": tasks, "groups": groups}


def freeze(tasks: TaskSet, lm: HFLM, *, chat_template: bool = False, seed: int = OTHER_SEED) -> FrozenRequests:
    """Builds and tokenises all requests.

    Args:
        tasks: the loaded tasks.
        lm: tokenises; its weights are not used.
        chat_template: whether prompts use the tokenizer's chat template, with few-shot examples as turns.
        seed: the seed for few-shot examples, by default lm-eval's.

    Raises:
        TaskError: a request cannot be built, or does not fit the model.
    """
    requests = FrozenRequests({}, tasks.groups, seed)
    with contained():
        for name, task in tasks.tasks.items():
            try:
                _build(task, tasks.limits[name], lm, chat_template, seed)
                requests.tasks[name] = frozen = FrozenTask(name, task, tasks.limits[name], list(task.instances))
                _tokenise(frozen, requests, lm)
                documents = {instance.doc_id: instance.doc for instance in frozen.instances}
                frozen.groups = groups_of(name, task, documents)
                frozen.gold = gold_answers(task, documents)
            except TaskError:
                raise
            except Exception as error:  # the task's templates and functions raise whatever they like
                raise TaskError(f"task {name!r}: its requests cannot be built: {one_line(error)}") from error
            _describe(frozen)
    return requests


def _describe(frozen: FrozenTask) -> None:
    """Counts a task's documents, and hashes documents, prompts and metrics."""
    documents = {instance.doc_id: instance.doc for instance in frozen.instances}
    frozen.documents = len(documents)
    frozen.indices = sorted(documents)
    frozen.documents_hash = _hash(documents.values())
    frozen.prompts_hash = _hash((i.request_type, *i.args) for i in frozen.instances)
    frozen.metrics_hash = _hash((key, frozen.task.get_config(key)) for key in SCORED_BY)


def _build(task: Task, limit: int | None, lm: HFLM, chat_template: bool, seed: int) -> None:
    task.set_fewshot_seed(seed=seed)
    task.build_all_requests(
        limit=limit,
        rank=0,
        world_size=1,
        apply_chat_template=chat_template,
        fewshot_as_multiturn=chat_template,
        chat_template=lm.apply_chat_template if chat_template else None,
        tokenizer_name=lm.tokenizer_name if chat_template else "",
    )


def _tokenise(frozen: FrozenTask, requests: FrozenRequests, lm: HFLM) -> None:
    """Adds the requests of a task to `requests`, each as often as the task repeats it."""
    tokens: list[Any] = []
    for kind in dict.fromkeys(instance.request_type for instance in frozen.instances):
        instances = [i for i in frozen.instances if i.request_type == kind for _ in range(i.repeats or 1)]
        if kind == "loglikelihood":
            pairs = token_pairs(instances, lm)
            _check_pairs(frozen, instances, pairs, lm.max_length)
            requests.pairs += pairs
            requests.pair_requests += instances
            tokens += [pair[1:] for pair in pairs]
        elif kind in ("loglikelihood_rolling", REQUEST):
            cut = kind == REQUEST
            texts = [] if cut else encode([instance.args[0] for instance in instances], lm)
            for place, instance in enumerate(instances):
                windows = [window_pair(instance)] if cut else _rolling_windows(texts[place], lm)
                requests.windows += windows
                requests.window_counts.append(len(windows))
                tokens += [window[1:] for window in windows]
            requests.rolling_requests += instances
        elif kind == "generate_until":
            requests.prompts += instances
            prompts = encode([instance.args[0] for instance in instances], lm)
            _check_prompts(frozen, instances, prompts, lm)
            tokens += [(prompt, []) for prompt in prompts]
        else:
            raise TaskError(f"task {frozen.name!r}: requests of kind {kind!r} are not supported")
    frozen.tokens = sum(len(context) + len(continuation) for context, continuation in tokens)
    frozen.tokens_hash = _hash(tokens)


def _rolling_windows(tokens: list[int], lm: HFLM) -> list[TokenPair]:
    """The windows of a text as in lm-eval's `loglikelihood_rolling`, which predict each token once."""
    windows = get_rolling_token_windows(
        token_list=tokens, prefix_token=lm.prefix_token_id, max_seq_len=lm.max_length, context_len=1
    )
    return [(None, *make_disjoint_window(window)) for window in windows]


def _check_pairs(frozen: FrozenTask, instances: list[Instance], pairs: list[TokenPair], longest: int) -> None:
    for instance, (_, context, continuation) in zip(instances, pairs, strict=True):
        where = f"task {frozen.name!r}, document {instance.doc_id}"
        if not continuation:
            raise TaskError(f"{where}: an empty continuation cannot be scored; give every choice some text")
        if not context:
            raise TaskError(f"{where}: a continuation of an empty context cannot be scored; give the prompt some text")
        if len(continuation) > longest:
            raise TaskError(
                f"{where}: a continuation of {len(continuation)} tokens does not fit the model's {longest}; "
                "raise max_length or leave the task out"
            )
        frozen.truncated += len(context) + len(continuation) > longest + 1


def _check_prompts(frozen: FrozenTask, instances: list[Instance], prompts: list[list[int]], lm: HFLM) -> None:
    for instance, prompt in zip(instances, prompts, strict=True):
        written = normalize_gen_kwargs(instance.args[1] or {}, lm.max_gen_toks)["max_gen_toks"]
        if written >= lm.max_length:
            raise TaskError(
                f"task {frozen.name!r} writes up to {written} tokens, and the model holds {lm.max_length}; "
                "set generation_kwargs: max_gen_toks"
            )
        frozen.truncated += len(prompt) + written > lm.max_length


def _hash(items: Iterable[Any]) -> str:
    """SHA-256 of items as JSON lines; functions by their source, other values unknown to JSON by `str`."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item, ensure_ascii=False, default=_as_text).encode() + b"\n")
    return digest.hexdigest()


def _as_text(value: Any) -> str:
    if not callable(value):
        return str(value)
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):  # built in, or made at run time
        return getattr(value, "__qualname__", type(value).__qualname__)
