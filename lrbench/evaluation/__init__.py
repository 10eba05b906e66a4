"""Scoring cells: the boundary (`engine`), and the engines that stand behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrbench.evaluation.base_engine import BoundEngine
    from lrbench.models.load import LoadedModel
    from lrbench.suite.load import ModelSpec
    from lrbench.tasks.task_set import TaskSet

#: What `--engine` chooses from, the default first.
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
) -> BoundEngine:
    """The engine called `name`, bound to a model as its suite describes it, and to tasks.

    Args:
        notify: told what the engine has to do without on this model.
        frontier_memory: GiB that states kept between cells may take, in an engine that keeps some; None: as much as
            suits the free memory.

    Raises:
        ModelError: lm-eval cannot take the model.
        TaskError: the tasks' requests cannot be built.
    """
    options = engine_options(spec, batch_size)
    Engine: type[BoundEngine]
    if name == "sweep":
        from lrbench.evaluation.sweep import SweepEngine as Engine

        if notify is not None:
            options["notify"] = notify
        if frontier_memory is not None:
            options["frontier_bytes"] = int(frontier_memory * 2**30)
    elif name == "frozen":
        from lrbench.evaluation.frozen import FrozenEngine as Engine
    else:
        from lrbench.evaluation.lm_eval_engine import HarnessEngine as Engine
    return Engine(loaded.model, loaded.tokenizer, tasks, **options)


def engine_options(spec: ModelSpec, batch_size: int | None = None) -> dict[str, Any]:
    """What every engine is told of a model, as its suite describes it."""
    return {
        "batch_size": batch_size or DEFAULT_BATCH_SIZE,
        "max_length": spec.max_length,
        "add_bos": spec.add_bos,
        "chat_template": spec.chat_template,
    }
