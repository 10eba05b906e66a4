"""Scoring cells: the engine protocol (`interface`) and its implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrbench.evaluation.base_engine import BaseEngine
    from lrbench.models.load import LoadedModel
    from lrbench.suite.load import ModelSpec
    from lrbench.tasks.task_set import TaskSet

#: The choices of `--engine`, the default first.
ENGINES = ("sweep", "frozen", "harness")
DEFAULT_BATCH_SIZE = 32  # rows of one forward pass


def make_engine(
    name: str,
    loaded: LoadedModel,
    tasks: TaskSet,
    spec: ModelSpec,
    batch_size: int | None = None,
    notify: Callable[[str], None] | None = None,
    frontier_memory: float | None = None,
) -> BaseEngine:
    """Makes the engine called `name` for a loaded model and its tasks.

    Args:
        notify: called with one line for each optimisation that this model does not support.
        frontier_memory: GiB for the hidden states that the sweep engine keeps between cells; None: chosen from the
            free memory.

    Raises:
        ModelError: lm-eval does not accept the model.
        TaskError: the tasks' requests cannot be built.
        ValueError: an unknown name.
    """
    options = engine_options(spec, batch_size)
    Engine: type[BaseEngine]
    if name == "sweep":
        from lrbench.evaluation.sweep import SweepEngine as Engine

        if notify is not None:
            options["notify"] = notify
        if frontier_memory is not None:
            options["frontier_bytes"] = int(frontier_memory * 2**30)
    elif name == "frozen":
        from lrbench.evaluation.frozen import FrozenEngine as Engine
    elif name == "harness":
        from lrbench.evaluation.lm_eval_engine import HarnessEngine as Engine
    else:
        raise ValueError(f"unknown engine {name!r}")
    return Engine(loaded.model, loaded.tokenizer, tasks, **options)


def engine_options(spec: ModelSpec, batch_size: int | None = None) -> dict[str, Any]:
    """The keyword arguments that every engine takes from a suite's model entry."""
    return {
        "batch_size": batch_size or DEFAULT_BATCH_SIZE,
        "max_length": spec.max_length,
        "add_bos": spec.add_bos,
        "chat_template": spec.chat_template,
    }
