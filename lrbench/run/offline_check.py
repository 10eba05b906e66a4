"""Refuses to run without network where something is missing; imports heavy modules only with `--offline`."""

from __future__ import annotations

from collections.abc import Iterable

from lrbench.errors import MissingError
from lrbench.suite.load import Suite
from lrbench.system.offline import offline_folder


def refuse_missing(suites: Iterable[Suite], *, trust_remote_code: bool = False) -> None:
    """With `--offline`, checks that its folder has all that suites need from the hub; otherwise does nothing.

    Raises:
        MissingError: something is missing.
    """
    folder = offline_folder()
    if folder is None:
        return
    from lrbench.run.hub_needs import missing

    lines = [line for suite in suites for line in missing(suite, folder, trust_remote_code=trust_remote_code)]
    if lines:
        raise MissingError([f"--offline {folder}: {line}" for line in dict.fromkeys(lines)])
