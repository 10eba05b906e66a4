"""What the hash of a reducer's source covers: what code does, and not how it is written down."""

import ast
import linecache
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from lrbench.errors import PluginError
from lrbench.reducers import source_hash as module
from lrbench.reducers.registry import Registry
from lrbench.reducers.source_hash import code_hash, source_hash

LRBENCH = Path(module.__file__).parent.parent
PACKAGES = ("linalg", "reducers", "reduction")
PLUGIN = '''\
"""A plugin."""

import lrbench


class Mine(lrbench.Reducer):
    """Keep the first columns."""

    name = "mine"
    scale: float = 1.0  # of what is kept

    def reduce(self, weight, rank, context):
        """The first columns."""
        kept = weight[:, :rank] * 1.0 + 0.0
        return lrbench.LowRank(kept, weight[:rank].clone())


@lrbench.hookimpl
def lrbench_reducers():
    return [Mine]
'''
UNSEEN = {
    "a comment": ("        kept =", "        # the columns\n        kept ="),
    "a comment at the end of a line": ("+ 0.0", "+ 0.0  # no more"),
    "another docstring of the file": ('"""A plugin."""', '"""The same plugin."""'),
    "no docstring of the class": ('    """Keep the first columns."""\n\n', ""),
    "another docstring of the method": ("The first columns.", "Columns."),
    "a string that stands alone": ("    scale", '    """what follows is a parameter"""\n    scale'),
    "blank lines": ("    name", "\n\n    name"),
    "line breaks": (
        "weight[:, :rank] * 1.0 + 0.0",
        "(\n            weight[:, :rank]\n            * 1.0 + 0.0\n        )",
    ),
    "other quotes": ('"mine"', "'mine'"),
    "another spelling of a number": ("1.0 + 0.0", "1.00 + 0."),
}
SEEN = {
    "an operator": ("* 1.0", "/ 1.0"),
    "the order of operations": ("weight[:, :rank] * 1.0 + 0.0", "weight[:, :rank] * (1.0 + 0.0)"),
    "a constant": ("+ 0.0", "+ 0.5"),
    "a constant's type": ("+ 0.0", "+ 0"),
    "a variable": ("(kept, ", "(weight, "),
    "a string": ('"mine"', '"other"'),
    "an annotation": ("scale: float", "scale: int"),
    "a decorator": ("@lrbench.hookimpl", "@lrbench.hookimpl(trylast=True)"),
    "a slice": ("weight[:rank]", "weight[rank:]"),
    "a statement": ("        return lrbench", "        kept = -kept\n        return lrbench"),
}


def hash_of(tmp_path, text):
    """The hash of the reducer in a plugin file with this text."""
    path = tmp_path / "mine.py"
    path.write_text(text)
    registry = Registry([path], entries=[])
    (name,) = registry.reducers
    return registry.source_hash(name)


def edited(text, change):
    old, new = change
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.mark.parametrize("change", UNSEEN.values(), ids=UNSEEN)
def test_how_a_plugin_is_written_down_is_no_part_of_it(tmp_path, change):
    assert hash_of(tmp_path, edited(PLUGIN, change)) == hash_of(tmp_path, PLUGIN)


@pytest.mark.parametrize("change", SEEN.values(), ids=SEEN)
def test_what_a_plugin_does_is_part_of_it(tmp_path, change):
    assert hash_of(tmp_path, edited(PLUGIN, change)) != hash_of(tmp_path, PLUGIN)


def test_different_programs_have_different_forms():
    """Sources that a careless form takes for one another."""
    sources = [
        *("f(a, b)", "f((a, b))", "f(a)(b)", "f([a, b])", "f(*a, b)", "f(a, *b)", "f(a, 'b')", "f('a', b)"),
        *("{**a, b: c}", "{b: c, **a}", "x[a:]", "x[:a]", "x[::a]", "x[a]", "x[a,]", "x.a", "x['a']"),
        *("def f(): return", "def f(): return None", "def f(): return 'None'", "def f(): return ..."),
        *("def f(a, *, b): f", "def f(a, *, b=None): f", "def f(a, b): f", "def f(a, /, b): f", "def f(*, a, b): f"),
        *("1", "1.0", "True", "1j", "b'1'", "x = '1'", "x = u'2'", "del a", "a", "global a", "nonlocal a"),
        *(
            "if a: b\nelse: c",
            "if a: b\nc",
            "if a:\n  b\n  c",
            "for a in b: c",
            "async def f():\n  async for a in b: c",
        ),
        *(
            "f'{a}'",
            "f'{a!r}'",
            "f'{a:b}'",
            "f'a'",
            "a + b - c",
            "a + (b - c)",
            "a - b + c",
            "lambda: a",
            "lambda a: a",
        ),
    ]
    forms = ["\n".join(module._normal_form(ast.parse(source))) for source in sources]
    assert len(set(forms)) == len(sources)


def test_the_form_is_the_same_in_all_versions_of_python():
    """Written out: where a version's syntax trees differ, this fails there."""
    source = (
        "async def f(a: int, *b, c=1.5, **d) -> None:\n    '''Text.'''\n    return {'k': [x for x in a if x], **d}\n"
    )
    assert list(module._normal_form(ast.parse(source))) == [
        *("Module body", "[1]", "AsyncFunctionDef name args body returns", "NoneType None", "[1]", "Return value"),
        *("Dict keys values", "[2]", "Name id", "'d'", "ListComp elt generators", "[1]"),
        *("comprehension target iter ifs is_async", "0", "[1]", "Name id", "'x'", "Name id", "'a'", "Name id", "'x'"),
        *("Name id", "'x'", "[2]", "None", "str 'k'", "arguments args vararg kwonlyargs kw_defaults kwarg"),
        *("arg arg", "'d'", "[1]", "float 1.5", "[1]", "arg arg", "'c'", "arg arg", "'b'", "[1]"),
        *("arg arg annotation", "Name id", "'int'", "'a'", "'f'"),
    ]


def test_a_sum_of_thousands_of_terms_has_a_hash():
    """Its tree is deeper than Python lets functions call themselves."""
    assert sys.getrecursionlimit() < 2500
    first, second = (module._tree_hash(f"x = {' + '.join(['a'] * 2500 + [last])}".encode()) for last in "bc")
    assert first != second


def test_the_place_of_a_plugin_is_no_part_of_it(tmp_path):
    (tmp_path / "deeper").mkdir()
    assert hash_of(tmp_path / "deeper", PLUGIN) == hash_of(tmp_path, PLUGIN)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The packages that count, where a test may change them."""
    for package in PACKAGES:
        shutil.copytree(LRBENCH / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "_LRBENCH", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("linalg/gram.py", (" @ ", " * ")),
        ("reducers/factors/elementary.py", (" @ ", " * ")),
        ("reducers/ranks.py", (" <= ", " < ")),
        ("reduction/allocation/knapsack.py", (" - ", " + ")),
        ("reduction/calibration/moments.py", (" / ", " * ")),
        ("reduction/apply.py", ("yield", "return")),
    ],
)
def test_an_operator_in_a_package_that_all_share_is_part_of_every_reducer(copy, file, change):
    registry = Registry.load()
    before = {name: registry.source_hash(name) for name in registry.reducers}
    path, text = copy / file, (LRBENCH / file).read_text()
    assert text.count(change[0]) > 0
    path.write_text(f"# A comment.\n'A docstring.'\n\n{text}")
    assert {name: registry.source_hash(name) for name in registry.reducers} == before
    path.write_text(change[1].join(text.rsplit(change[0], 1)))
    assert all(registry.source_hash(name) != before[name] for name in before)


def test_what_decides_no_number_is_no_part(copy):
    before = code_hash(*PACKAGES)
    for file in ("reducers/registry.py", "reducers/testing/promises.py"):
        (copy / file).write_text("x = 1\n")
        assert code_hash(*PACKAGES) == before
    (copy / "reducers" / "new.py").write_text("x = 1\n")
    assert code_hash(*PACKAGES) != before


def test_statistics_are_known_by_the_code_that_collects_them(copy, monkeypatch):
    from lrbench.reduction.calibration.cache import Cache

    monkeypatch.setenv("LRBENCH_CACHE", str(copy / "cache"))
    keys = [Cache({}, print).key]
    for line in ("# a comment\n", "x = 1\n"):
        with (copy / "reduction" / "calibration" / "moments.py").open("a") as file:
            file.write(line)
        keys.append(Cache({}, print).key)
    assert [first == second for first, second in pairwise(keys)] == [True, False]


def test_the_classes_a_reducer_derives_from_are_part_of_it(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    base = Registry([tmp_path / "mine.py"], entries=[]).get("mine")
    derived = type("Derived", (base,), {"name": "derived", "__module__": __name__})
    assert source_hash(derived) != source_hash(base)


def test_a_reducer_without_readable_source_is_refused(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(PLUGIN)
    base = Registry([tmp_path / "mine.py"], entries=[]).get("mine")
    derived = type("Derived", (base,), {"name": "derived", "__module__": "nowhere"})
    with pytest.raises(PluginError, match="derived: the source of nowhere cannot be read"):
        source_hash(derived)
    (tmp_path / "mine.py").write_text("def (:\n")  # changed since it was loaded
    with pytest.raises(PluginError, match=r"mine: the source of lrbench_plugin_mine.* cannot be read: .*line 1"):
        source_hash(base)


def test_a_compiled_module_counts_by_its_bytes(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(PLUGIN)
    base = Registry([tmp_path / "mine.py"], entries=[]).get("mine")
    compiled = tmp_path / "mine.so"
    monkeypatch.setattr(sys.modules[base.__module__], "__file__", str(compiled))
    hashes = []
    for content in (b"\x7fELF\0", b"\x7fELF\1"):
        compiled.write_bytes(content)
        hashes.append(source_hash(base))
    assert hashes[0] != hashes[1]


def typed(source, monkeypatch, kept=True):
    """The class Mine as a notebook makes it: in a module without a file, its cell kept in linecache."""
    notebook = ModuleType("notebook")
    cell = f"<cell {hash(source)}>"
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    if kept:
        monkeypatch.setitem(linecache.cache, cell, (len(source), None, source.splitlines(keepends=True), cell))
    exec(compile(source, cell, "exec"), notebook.__dict__)
    return notebook.Mine


@pytest.mark.parametrize(("changes", "same"), [(UNSEEN, True), (SEEN, False)], ids=["unseen", "seen"])
def test_a_class_typed_into_a_notebook_is_known_by_its_cell(changes, same, monkeypatch):
    whole = source_hash(typed(PLUGIN, monkeypatch))
    for change in changes.values():
        assert (source_hash(typed(PLUGIN.replace(*change), monkeypatch)) == whole) == same, change


def test_a_method_that_another_cell_puts_into_a_class_is_part_of_it(monkeypatch):
    mine = typed(PLUGIN, monkeypatch)
    before = source_hash(mine)
    mine.reduce = typed(PLUGIN.replace("* 1.0", "* 2.0"), monkeypatch).reduce
    assert source_hash(mine) != before


def test_a_class_whose_cell_is_kept_nowhere_is_refused_in_one_line(monkeypatch):
    with pytest.raises(PluginError, match=r"mine: the source of notebook\.Mine cannot be read: no cell") as raised:
        source_hash(typed(PLUGIN, monkeypatch, kept=False))
    assert "\n" not in str(raised.value)
