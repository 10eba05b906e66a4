"""`lrbench plugins list | show NAME | new NAME | test NAME`: lists reducers and helps to write one."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from lrbench.cli.output import say
from lrbench.errors import InputError, PluginError

if TYPE_CHECKING:
    from lrbench.reducers.registry import Registry

REDUCER = Template('''"""$title: describe the method and cite its source here."""

from __future__ import annotations

import torch

import lrbench


class $klass(lrbench.Reducer):
    """Keep the k columns of W with the largest norm (replace this by your method)."""

    name = "$name"

    def reduce(self, weight: torch.Tensor, rank: int, context: lrbench.Context) -> lrbench.Factors:
        columns = weight.norm(dim=0).topk(rank).indices.sort().values  # (k,)
        return lrbench.ColumnSubset(weight[:, columns], columns, in_features=weight.shape[1])  # (out, k)

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int:
        return shape[0] * rank

    def max_rank(self, shape: tuple[int, int]) -> int:
        return shape[1]


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    return [$klass]
''')

TEST = Template('''"""Conformance of the reducer $name: `pytest $test_file`."""

from pathlib import Path

import pytest

from lrbench.reducers.registry import Registry
from lrbench.testing import check_reducer

registry = Registry.load([Path(__file__).with_name("$file")])


@pytest.mark.parametrize("result", check_reducer(registry.get("$name")), ids=lambda result: result.name)
def test_conformance(result):
    assert result.passed, result.detail
''')


def add_parser(subparsers: Any) -> None:
    """Adds the verb and its subcommands."""
    parser = subparsers.add_parser("plugins", help="list, show, start and test reducers")
    verbs = parser.add_subparsers(dest="plugins_verb", metavar="list|show|new|test", required=True)
    listing = verbs.add_parser("list", help="every reducer, and every plugin that cannot be loaded")
    show = verbs.add_parser("show", help="one reducer: its source, parameters and promises")
    show.add_argument("name", metavar="NAME")
    new = verbs.add_parser("new", help="write a working reducer and its test as a template")
    new.add_argument("name", metavar="NAME", help="lower-case words joined by hyphens")
    new.add_argument("--dir", type=Path, default=Path(), help="folder to write to (default: here)")
    test = verbs.add_parser("test", help="run the conformance checks on a reducer")
    test.add_argument("name", metavar="NAME", help="a reducer's name, or a plugin file (all its reducers)")
    test.add_argument("--device", default="cpu")
    for verb, function in ((listing, run_list), (show, run_show), (new, run_new), (test, run_test)):
        if verb is not new:
            verb.add_argument(
                "--plugin", action="append", default=[], metavar="FILE", help="a plugin file (repeatable)"
            )
        verb.set_defaults(run=function)


def run_list(args: argparse.Namespace) -> int:
    """Prints names, sources and first lines of documentation; broken plugins with their error."""
    registry = _registry(args.plugin)
    width = max((len(name) for name in registry.reducers), default=0)
    for name, reducer in sorted(registry.reducers.items()):
        summary = (reducer.__doc__ or "").strip().split("\n")[0]
        say(f"{name:{width}}  {summary}  [{registry.source(name)}]")
    for broken in registry.broken:
        say(f"broken: {broken.source}: {broken.error}")
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Prints one reducer."""
    from lrbench.reducers.base import PROMISES

    registry = _registry(args.plugin)
    reducer = registry.get(args.name)
    documentation = inspect.getdoc(reducer) or "No documentation."
    for line in (f"{args.name}  [{registry.source(args.name)}]", "", *documentation.split("\n"), ""):
        say(line)
    parameters = registry.parameters(args.name)
    print("parameters" if parameters else "no parameters")
    for parameter in parameters:
        say(f"  {parameter.name}: {parameter.type} = {parameter.default!r}  {parameter.doc}".rstrip())
    if reducer.needs:
        say(f"needs calibration: {', '.join(sorted(reducer.needs))}")
    if reducer.promises:
        print("promises")
        for promise in sorted(reducer.promises):
            print(f"  {promise}: {PROMISES[promise]}")
    return 0


def run_new(args: argparse.Namespace) -> int:
    """Writes NAME.py and test_NAME.py; never overwrites a file."""
    from lrbench.reducers.base import NAME

    if not NAME.fullmatch(args.name) or not args.name[0].isalpha():
        raise InputError(
            f"{args.name!r} cannot be a reducer's name; use lower-case words joined by hyphens: top-columns"
        )
    if args.name in _registry([]).reducers:
        raise InputError(f"there is a reducer called {args.name!r} already; choose another name")
    if not args.dir.is_dir():
        raise InputError(f"{args.dir}: no such folder; create it first")
    words = args.name.split("-")
    file = args.dir / f"{'_'.join(words)}.py"
    test = args.dir / f"test_{'_'.join(words)}.py"
    names = {"name": args.name, "klass": "".join(map(str.capitalize, words)), "title": " ".join(words).capitalize(),
             "file": file.name, "test_file": test.name}  # fmt: skip
    for path in (file, test):
        if path.exists():
            raise InputError(f"{path}: exists already; choose another name or --dir")
    file.write_text(REDUCER.substitute(names))
    test.write_text(TEST.substitute(names))
    say(f"wrote {file} and {test}")
    say(f"  lrbench plugins test {file}")
    say(f"  lrbench run quickstart --plugin {file} --set 'reducers=[{args.name}]'")
    return 0


def run_test(args: argparse.Namespace) -> int:
    """Prints every check; returns 1 if one failed."""
    from lrbench.reducers.testing import check_reducer

    is_file = args.name.endswith(".py")
    file = str(Path(args.name))  # as the registry records it
    registry = _registry([*args.plugin, file] if is_file else args.plugin)
    names = [name for name in registry.reducers if registry.source(name) == file] if is_file else [args.name]
    if is_file and not names:
        broken = [entry.error for entry in registry.broken if entry.source == file]
        raise PluginError(f"{args.name}: {broken[0] if broken else 'registers no reducers'}")
    failed = 0
    for name in names:
        results = check_reducer(registry.get(name), device=args.device)
        for result in results:
            mark = "skip" if result.skipped else "ok" if result.passed else "FAIL"
            detail = result.skipped or ("" if result.passed else result.detail)
            say(f"{mark:4}  {result.name}{': ' + detail if detail else ''}")
        wrong = sum(not result.passed for result in results)
        failed += wrong
        say(f"{name}: {f'{wrong} of {len(results)} checks failed' if wrong else f'all {len(results)} checks passed'}")
    return 1 if failed else 0


def _registry(files: list[str]) -> Registry:
    from lrbench.reducers.registry import Registry

    return Registry.load(files)
