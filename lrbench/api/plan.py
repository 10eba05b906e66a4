"""`lrbench.plan`: the plan of a run, as `lrbench check` shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrbench.api.arguments import path_of, paths_of
from lrbench.api.run import suite_of
from lrbench.reports.progress import TerminalProgress
from lrbench.reports.suite_plan import SuitePlan, plan_suite
from lrbench.run.inputs import load_registry
from lrbench.run.offline_check import refuse_missing
from lrbench.suite.load import Suite
from lrbench.system.offline import without_network


def plan(
    suite: str | Path | Mapping[str, Any] | Suite,
    *,
    reducers: Sequence[Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    limit: int | None = None,
    dtype: str | None = None,
    plugins: Iterable[str | Path] = (),
    out: str | Path | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    offline: str | Path | None = None,
) -> SuitePlan:
    """Plans a suite without computing anything: weights, cells, ranks, and cells known to fail.

    Args:
        suite, reducers, overrides, limit, dtype, plugins, out, device, trust_remote_code, offline: as in `lrbench.run`.

    Returns:
        The plan, which shows itself in a terminal and in a notebook. `plan.models[0].cells` are the first model's
        cells, `plan.models[0].failures` those known to fail.

    Raises:
        InputError: the suite, one of its models, tasks or plugins, or an argument is invalid.
    """
    described = suite_of(suite, reducers, overrides, limit, dtype)
    folder = path_of("offline", offline) if offline is not None else None
    with without_network(folder), TerminalProgress() as progress:
        refuse_missing([described], trust_remote_code=trust_remote_code)
        registry = load_registry([*described.plugins, *paths_of("plugins", plugins)], progress.note, described.classes)
        return plan_suite(
            described, registry, progress.note,
            directory=path_of("out", out) if out is not None else None,
            device=device, trust_remote_code=trust_remote_code,
        )  # fmt: skip
