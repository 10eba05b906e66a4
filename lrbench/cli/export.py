"""`lrbench export RUN CELL DIR`: writes a cell's edited model as a checkpoint."""

from __future__ import annotations

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

from lrbench.cli.output import say
from lrbench.errors import InputError
from lrbench.export import FORMATS, write


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "export",
        help="write a cell's edited model: dense, factored, or as a LoRA adapter",
        description="Recomputes a cell's edit from its run's directory, checks that it equals the scored one, and "
        "writes the edited model with a model card.",
    )
    parser.add_argument("run_directory", metavar="RUN", type=Path, help="a run directory (it holds rows.jsonl)")
    parser.add_argument("cell", metavar="CELL", help="a cell's hash, or an unambiguous prefix")
    parser.add_argument("directory", metavar="DIR", type=Path, help="the folder to write; must not exist, or be empty")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0],
                        help="dense: a checkpoint for transformers; factored: factors and the other weights, for "
                             "lrbench.load; lora: a PEFT adapter, for low-rank updates (default: dense)")  # fmt: skip
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: the suite's, else the GPU)")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", type=Path,
                        help="a plugin file, instead of the run's (repeatable)")  # fmt: skip
    parser.add_argument("--other-code", action="store_true",
                        help="accept changed code if it reproduces the row's ranks and errors")  # fmt: skip
    parser.add_argument("--trust-remote-code", action="store_true",
                        help="let a model whose suite says trust_remote_code: true run its own code")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the export and prints its path and size."""
    if args.run_directory.is_file():
        raise InputError(f"{args.run_directory}: a file; give the run's directory, {args.run_directory.parent}")
    from lrbench.export.exported_model import ExportedModel, check_format
    from lrbench.export.folder import refuse_occupied
    from lrbench.results.directory import open_run
    from lrbench.run.recompute import compute_again

    refuse_occupied(args.directory)
    directory = open_run(args.run_directory)
    recomputed = compute_again(
        directory, args.cell, plugins=args.plugin, notify=lambda message: say(message, sys.stderr),
        accept=partial(check_format, args.format), device=args.device, other_code=args.other_code,
        trust_remote_code=args.trust_remote_code,
    )  # fmt: skip
    command = ["lrbench", "export", args.run_directory.name, recomputed.row.cell[:10], "DIR", "--format", args.format]
    exported = ExportedModel.of_cell(recomputed, directory, made=shlex.join(command))
    write(exported, args.directory, args.format)
    size = sum(file.stat().st_size for file in args.directory.rglob("*.safetensors"))
    say(f"{args.directory}: {args.format}, {size / 1e6:.1f} MB of weights; described in its README.md")
    return 0
