"""`lrbench env`: hardware and versions, as rows record them."""

from __future__ import annotations

import argparse
from typing import Any

from lrbench.cli.output import say


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser("env", help="print hardware and versions, as rows record them")
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the environment."""
    from lrbench.system.environment import environment

    entry = environment()
    if args.format == "json":
        import json

        print(json.dumps(entry, indent=2))
        return 0
    for key, value in entry.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {version}" for name, version in value.items()) or "none"
        elif isinstance(value, list):
            value = ", ".join(value)
        say(f"{key:12} {value}")
    return 0
