"""Where a run's cells are computed: in this process, or by workers on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from lrbench.errors import InputError

if TYPE_CHECKING:
    from lrbench.run.model_run import ModelRun, ModelSetup

#: Values of `--executor`, the default first.
EXECUTORS = ("local", "ray")


class Executor(Protocol):
    """Opens a run's models. An opened model computes rows and writes nothing: only the run's own process writes.

    Attributes:
        here: whether models are opened and cells computed in this process, which then needs their devices.
    """

    here: bool

    def open(self, setup: ModelSetup) -> ModelRun:
        """Opens one model of a suite; see `lrbench.run.model_run.open_model`.

        Raises:
            InputError: the model, its base, the tasks or the calibration text cannot be loaded; or no worker can hold
                the model.
        """
        ...

    def stop(self) -> None:
        """Lets the cells under way finish and starts no other; the iterator of rows then raises KeyboardInterrupt."""
        ...

    def close(self) -> None:
        """Releases everything that was opened."""
        ...


class LocalExecutor:
    """Computes in this process, one cell after the other."""

    here = True

    def open(self, setup: ModelSetup) -> ModelRun:
        """See `Executor.open`."""
        from lrbench.run.model_run import open_model

        return open_model(setup)

    def stop(self) -> None:
        """Does nothing: there is no other process, and ^C interrupts the cell itself."""

    def close(self) -> None:
        """Does nothing."""


def make_executor(name: str, **options: Any) -> Executor:
    """Makes the executor called `name`.

    Args:
        options: of Ray; see `lrbench.run.executors.ray.RayOptions`.

    Raises:
        InputError: an unknown name, or a value that its option does not take.
    """
    if name == "local":
        return LocalExecutor()
    if name == "ray":
        from lrbench.run.executors.ray import RayExecutor, RayOptions

        return RayExecutor(RayOptions(**options))
    raise InputError(f"executor={name!r}: choose one of {', '.join(EXECUTORS)}, or give an executor")
