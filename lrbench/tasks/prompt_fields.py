"""Checks that a task's documents have the fields that its prompt reads.

lm-eval takes a name that is no field for text, and would prompt the model with the name itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jinja2
from jinja2 import meta, nodes
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.utils import env

from lrbench.errors import TaskError

_PROMPT = ("doc_to_text", "doc_to_target", "doc_to_choice")
_AROUND = ("description", "gen_prefix")  # text, unless it has a template's brackets


def check_fields(task: Task, error: Exception | None = None) -> None:
    """Raises TaskError if the task reads a field that its documents lack.

    Args:
        task: a task that is loaded, or failed to.
        error: the reason of the failure.
    """
    if not isinstance(task, ConfigurableTask):
        return
    config = task.config
    raw = _raw_fields(task)
    # process_docs may add fields; the features are those of processed documents
    fields = getattr(task, "features", None if config.process_docs is not None else raw)
    missing = [] if fields is None else [name for name in _names(config) if name not in fields]
    if not missing and isinstance(error, KeyError) and raw is not None and error.args[0] not in raw:
        fields, missing = raw, [str(error.args[0])]
    if fields is not None and missing:
        listing = ", ".join(map(repr, missing))
        raise TaskError(
            f"task {config.task!r} reads {listing}, which its documents lack; they have {', '.join(fields)}"
        )


def _raw_fields(task: ConfigurableTask) -> list[str] | None:
    dataset = getattr(task, "dataset", None)
    split = task.config.test_split or task.config.validation_split
    columns = getattr(dataset[split], "column_names", None) if dataset is not None and split in dataset else None
    return list(columns) if columns is not None else None


def _names(config: Any) -> list[str]:
    """The fields that a task's templates read, each once."""
    names: dict[str, None] = {}
    for key in (*_PROMPT, *_AROUND):
        template = getattr(config, key)
        if not isinstance(template, str) or (key == "doc_to_target" and _unread_target(config)):
            continue
        if key in _PROMPT and template.isidentifier():
            names[template] = None
        elif "{" in template:
            names |= dict.fromkeys(_undeclared(template))
    return list(names)


def _unread_target(config: Any) -> bool:
    """Whether the gold answer is not read from documents: it is one of the choices, or the metrics have own code."""
    choices = config.doc_to_choice
    constant = isinstance(choices, list) and config.doc_to_target in choices
    return constant or (config.process_results is not None and config.output_type == "multiple_choice")


def _undeclared(template: str) -> Iterator[str]:
    try:
        tree = env.parse(template)
    except jinja2.TemplateSyntaxError:  # lm-eval says what is wrong
        return
    optional = {
        name.name
        for kind, guards in ((nodes.Test, ("defined", "undefined")), (nodes.Filter, ("default", "d")))
        for node in tree.find_all(kind)
        if node.name in guards
        for name in node.find_all(nodes.Name)
    }
    yield from sorted(meta.find_undeclared_variables(tree) - optional - env.globals.keys())
