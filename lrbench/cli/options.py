"""What the verbs that take a suite share: its options, and how it and its plugins are read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lrbench.cli.output import say

if TYPE_CHECKING:
    from lrbench.reducers.registry import Registry
    from lrbench.suite.load import Suite


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """The options that change a suite, for every verb that takes one."""
    parser.add_argument("--limit", type=int, metavar="N", help="at most N documents of each task")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="instead of the suite's")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a plugin file (repeatable)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change the suite, as in --set sweep.0.rank.keep=[0.5] (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--trust-remote-code", action="store_true",
        help="let models whose suite says trust_remote_code: true run the code in their repositories",
    )  # fmt: skip


def default_directory(suite: Suite) -> Path:
    """Where a suite's run is kept, unless told otherwise."""
    return Path("results") / "local" / f"{suite.name}-{suite.hash}"


def load_registry(*files: Iterable[str | Path]) -> Registry:
    """The reducers there are, with those in `files`. A named file that cannot be loaded is said at once."""
    from lrbench.reducers.registry import Registry

    named = [Path(file) for group in files for file in group]
    registry = Registry.load(named)
    for broken in registry.broken:
        if Path(broken.source) in named or Path(broken.source).parent in named:
            say(f"lrbench: plugin {broken.source} cannot be loaded: {broken.error}", sys.stderr)
    return registry


def read_suite(name: str, args: argparse.Namespace) -> Suite:
    """The suite called `name`, as the command line changes it.

    Raises:
        InputError: there is no such suite, or it is wrong; a task that no file defines is refused here, before lm-eval
            is imported.
    """
    from lrbench.suite.load import load_suite
    from lrbench.tasks.names import unknown

    suite = load_suite(name, overrides=args.overrides, limit=args.limit, dtype=args.dtype)
    named = {spec.task: spec.path for spec in reversed(suite.tasks)}
    if all(folder.is_dir() for folder in suite.task_paths):
        for task, hint in unknown([spec.task for spec in suite.tasks], suite.task_paths):
            raise suite.error(named[task], f"unknown task {task!r}{hint}")
    return suite
