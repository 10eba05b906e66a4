"""Where a run's cells are computed: in this process, or by workers on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lrbench.reducers.registry import Registry
    from lrbench.reduction.plan import Method
    from lrbench.run.model_run import ModelRun
    from lrbench.suite.load import ModelSpec, Suite

#: What `--executor` chooses from, the default first.
EXECUTORS = ("local", "ray")


class Executor(Protocol):
    """Opens a run's models. What it opens computes rows and writes nothing: the run's process alone writes.

    Attributes:
        here: models are opened, and cells computed, in this process, so that devices must be there.
    """

    here: bool

    def open(
        self,
        suite: Suite,
        spec: ModelSpec,
        built: Sequence[Method],
        registry: Registry,
        *,
        engine: str,
        device: str | None,
        trust_remote_code: bool,
        notify: Callable[[str], None],
    ) -> ModelRun:
        """One model of a suite, ready to have cells reduced and scored; see `lrbench.run.model_run.open_model`.

        Raises:
            InputError: the model, its base, the tasks or the calibration cannot be had; or there is no worker for it.
        """
        ...

    def stop(self) -> None:
        """Has the cells under way finished and no other begun; what yields rows then raises KeyboardInterrupt."""
        ...

    def close(self) -> None:
        """Lets go of all that was opened."""
        ...


class LocalExecutor:
    """In this process, one cell after the other."""

    here = True

    def open(
        self,
        suite: Suite,
        spec: ModelSpec,
        built: Sequence[Method],
        registry: Registry,
        *,
        engine: str,
        device: str | None,
        trust_remote_code: bool,
        notify: Callable[[str], None],
    ) -> ModelRun:
        """See `Executor.open`."""
        from lrbench.run.model_run import open_model

        return open_model(
            suite, spec, built, engine=engine, device=device, trust_remote_code=trust_remote_code, notify=notify
        )

    def stop(self) -> None:
        """Nothing runs beside this process: ^C reaches the cell itself."""

    def close(self) -> None:
        """Nothing is held."""
