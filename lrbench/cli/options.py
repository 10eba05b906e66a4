"""The common options of verbs that take a suite, and the reading of suite and plugins."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lrbench.cli.output import say

if TYPE_CHECKING:
    from lrbench.reducers.registry import Registry
    from lrbench.suite.load import Suite


def add_offline(parser: argparse.ArgumentParser) -> None:
    """Adds `--offline`."""
    parser.add_argument(
        "--offline", metavar="DIR",
        help="take all that comes from the hub from a folder of `lrbench fetch`, and use no network "
             "(default: $LRBENCH_OFFLINE)",
    )  # fmt: skip


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that change a suite."""
    parser.add_argument("--limit", type=int, metavar="N", help="at most N documents of each task")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="instead of the suite's")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a plugin file (repeatable)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change the suite, as in --set sweep.0.rank.keep=[0.5] (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--datasets", metavar="ROOT",
        help="a folder of saved data sets, DATASET/CONFIG/SPLIT, read before the hub is asked "
             "(default: the suite's, else $LRBENCH_DATASETS)",
    )  # fmt: skip
    parser.add_argument(
        "--trust-remote-code", action="store_true",
        help="let models whose suite says trust_remote_code: true run the code in their repositories",
    )  # fmt: skip


@contextmanager
def fast_imports() -> Iterator[None]:
    """Pauses the garbage collector in a block that imports torch, transformers or lm-eval for the first time.

    It would go through the growing pile of modules again and again, and once more at the end of the process: a third of
    the time of imports. Blocks may be nested.
    """
    if "lm_eval" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # modules are not garbage
        gc.enable()


def whole_number(allowed: range, expected: str) -> Callable[[str], int]:
    """Parses an option that is a whole number in a range."""

    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > 19 or int(text) not in allowed:
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
        return int(text)

    return parse


count = whole_number(range(1, 2**63), "a whole number above zero")


def load_registry(*files: Iterable[str | Path]) -> Registry:
    """All reducers, including those in `files`. Reports a file that cannot be loaded."""
    from lrbench.run import inputs

    named = [file for group in files for file in group]
    with fast_imports():
        return inputs.load_registry(named, lambda message: say(f"lrbench: {message}", sys.stderr))


def read_suite(name: str, args: argparse.Namespace) -> Suite:
    """The suite called `name`, with the command line's changes. Raises InputError if it is missing or invalid."""
    from lrbench.run import inputs

    overrides = [*args.overrides, *([f"datasets={json.dumps(args.datasets)}"] if args.datasets is not None else [])]
    return inputs.read_suite(name, overrides, limit=args.limit, dtype=args.dtype)
