"""The command line: one module per verb, each with `add_parser(subparsers)` and `run(args) -> exit code`.

For bad input, `run` raises an `LrbenchError`, which `main` prints in one line.

Verbs import heavy modules only when they run, so that `lrbench --help` is fast.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lrbench._version import __version__
from lrbench.cli import (
    check,
    compare,
    damage,
    env,
    export,
    fetch,
    leaderboard,
    matrix,
    merge,
    plugins,
    publish,
    run,
    spectrum,
)
from lrbench.errors import LrbenchError, MissingError
from lrbench.system.offline import without_network
from lrbench.system.text import clean, one_line

VERBS = (run, check, fetch, leaderboard, compare, damage, merge, publish, export, spectrum, matrix, plugins, env)


class _Parser(argparse.ArgumentParser):
    """An argparse parser with one-line errors."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {clean(message)}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    top = _Parser(
        prog="lrbench", description="Benchmark low-rank decompositions of language-model weights.", allow_abbrev=False
    )
    top.add_argument("--version", action="version", version=f"lrbench {__version__}")
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    subparsers = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for verb in VERBS:
        verb.add_parser(subparsers)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb: 0 all cells ok, 1 some cell failed, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # replaces characters that the terminal cannot show
            stream.reconfigure(errors="replace")
    debug = "--debug" in arguments  # also accepted after the verb
    args = parser().parse_args(_joined([argument for argument in arguments if argument != "--debug"]))
    try:
        with without_network(getattr(args, "offline", None)):
            return args.run(args)
    except LrbenchError as error:
        if debug:
            raise
        for line in error.lines if isinstance(error, MissingError) else [one_line(error)]:
            print(f"lrbench: {clean(line)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of the output exited, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        if debug:
            raise
        print("lrbench: interrupted", file=sys.stderr)
        return run.INTERRUPTED
    except OSError as error:  # a full disk, a closed device: neither bad input nor a bug
        if debug:
            raise
        print(f"lrbench: {one_line(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        if debug:
            raise
        print(f"lrbench: {one_line(error)} (this is a bug in lrbench; --debug shows where)", file=sys.stderr)
        return 1


def _joined(args: Sequence[str]) -> list[str]:
    """Joins `--sort -keep` to `--sort=-keep`, where argparse would see an option `-keep`."""
    joined: list[str] = []
    for arg in args:
        if joined and joined[-1] == "--sort" and arg.startswith("-") and not arg.startswith("--"):
            joined[-1] = f"--sort={arg}"
        else:
            joined.append(arg)
    return joined
