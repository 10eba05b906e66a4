"""The registry: reducers are found in three ways, and what is broken breaks nothing else."""

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from lrbench.errors import PluginError
from lrbench.reducers.parameters import ParameterError, values
from lrbench.reducers.registry import Registry

ROOT = Path(__file__).parents[2]

HEAD = """\
from __future__ import annotations

from typing import Annotated, Literal

import lrbench


class Mine(lrbench.Reducer):
    \"\"\"Mine.\"\"\"

    name = "mine"
"""
BODY = """
    def reduce(self, weight, rank, context):
        return None


"""
HOOK = """@lrbench.hookimpl
def lrbench_reducers():
    return [Mine]
"""
PLUGIN = HEAD + BODY + HOOK
PARAMETERS = """
    oversample: Annotated[int, "columns beyond the rank"] = 8
    tolerance: float = 0.1
    method: Literal["qr", "svd"] = "qr"
    weights: tuple[float, ...] = (1.0,)
    exact: bool = True
    limit: int | None = None

    def __post_init__(self):
        if self.oversample < 0:
            raise ValueError("oversample must not be negative")
"""


@pytest.fixture
def plugin(tmp_path):
    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def of_files():
    return lambda *files: Registry(files, entries=[])


def broken_by(registry):
    [broken] = registry.broken
    assert "\n" not in broken.error
    return broken.error


# Three ways in


def test_a_plugin_file_gives_its_reducers(plugin, of_files):
    path = plugin(PLUGIN)
    registry = of_files(path)
    assert list(registry.reducers) == ["mine"]
    assert registry.source("mine") == str(path)
    assert registry.build("mine").name == "mine"
    assert not registry.broken


def test_a_folder_gives_each_of_its_files_less_tests_and_private_ones(plugin, of_files, tmp_path):
    plugin(PLUGIN)
    plugin(PLUGIN.replace('"mine"', '"other"'), "other.py")
    for name in ("test_mine.py", "conftest.py", "_private.py"):
        plugin("raise RuntimeError", name)
    registry = of_files(tmp_path)
    assert sorted(registry.reducers) == ["mine", "other"]
    assert not registry.broken


def test_an_installed_distribution_gives_its_reducers(plugin, tmp_path):
    plugin(PLUGIN, "some_distribution.py")
    info = tmp_path / "some_distribution-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-distribution\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[lrbench]\nmine = some_distribution\nbad = no_such_module_at_all\n")
    code = (
        "from lrbench.reducers.registry import Registry; r = Registry(); print(r.source('mine'));"
        "print([b for b in r.broken if b.names == ('bad',)][0].error)"
    )
    path = f"{tmp_path}:{ROOT}"
    output = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, cwd=tmp_path,
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert output.splitlines() == [
        "some-distribution 1.2: some_distribution",
        "ModuleNotFoundError: No module named 'no_such_module_at_all'",
    ]


def test_the_entry_points_are_the_files_in_plugins():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lrbench"]
    files = {path.stem for path in (ROOT / "plugins").glob("*.py") if not path.stem.startswith("_")}
    assert declared == {stem.replace("_", "-"): f"lrbench.plugins.{stem}" for stem in files}


def test_every_built_in_plugin_loads_under_its_own_name():
    registry = Registry()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lrbench"]
    assert registry.broken == []
    assert set(declared) <= set(registry.reducers)
    for name in declared:
        assert registry.source(name) == declared[name]
        assert registry.build(name) == registry.build(name)


def test_no_top_level_module_called_plugins_is_imported():
    code = "import sys; from lrbench.reducers.registry import Registry; Registry(); assert 'plugins' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_importing_the_registry_imports_no_torch():
    subprocess.run(
        [sys.executable, "-c", "import sys, lrbench.reducers.registry; assert 'torch' not in sys.modules"], check=True
    )


def test_two_files_of_one_name_are_two_modules(plugin, of_files, tmp_path):
    (tmp_path / "deeper").mkdir()
    first, second = plugin(PLUGIN), plugin(PLUGIN.replace('"mine"', '"other"'), "deeper/mine.py")
    registry = of_files(first, second)
    assert {cls.__module__ for cls in registry.reducers.values()} & {"mine"} == set()
    assert registry.reducers["mine"].__module__ != registry.reducers["other"].__module__


def test_a_file_given_twice_counts_once(plugin, of_files, tmp_path):
    path = plugin(PLUGIN)
    assert list(of_files(path, tmp_path, str(path)).reducers) == ["mine"]


def test_an_edited_file_is_read_anew_and_leaves_no_bytecode(plugin, of_files, tmp_path):
    assert of_files(plugin(PLUGIN)).get("mine").__doc__ == "Mine."
    assert of_files(plugin(PLUGIN.replace("Mine.", "Yours"))).get("mine").__doc__ != "Mine."
    assert not (tmp_path / "__pycache__").exists()


# Broken ones


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("def f(:\n", "SyntaxError: invalid syntax"),
        ("import no_such_module_at_all\n", "ModuleNotFoundError: No module named 'no_such_module_at_all' (line 1)"),
        ("x = 1\n1 / 0\n", "ZeroDivisionError: division by zero (line 2)"),
        ("import sys\nsys.exit(3)\n", "it calls sys.exit(3)"),
        ("raise SystemExit\n", "it calls sys.exit()"),
        ("x = 1\n", "no lrbench_reducers() marked with @lrbench.hookimpl"),
        (PLUGIN.replace("@lrbench.hookimpl\n", ""), "no lrbench_reducers() marked with @lrbench.hookimpl"),
        (PLUGIN.replace("def lrbench_reducers", "def lrbench_reducer"), "unknown hook 'lrbench_reducer'"),
        (PLUGIN.replace("def lrbench_reducers()", "def lrbench_reducers(x)"), "hook 'lrbench_reducers'"),
        (PLUGIN.replace("[Mine]", "Mine"), "lrbench_reducers() must return a list of classes"),
        (PLUGIN.replace("[Mine]", "'mine'"), "lrbench_reducers() must return a list of classes"),
        (PLUGIN.replace("return [Mine]", "raise KeyError('x')"), "KeyError: 'x' (line 19)"),
        (PLUGIN.replace("return [Mine]", "raise SystemExit(1)"), "it calls sys.exit(1)"),
        (PLUGIN.replace("[Mine]", "[Mine()]"), "must return classes; write Mine without parentheses"),
        (PLUGIN.replace("[Mine]", "[int]"), "<class 'int'>, which is not a subclass of lrbench.Reducer"),
        (PLUGIN.replace("[Mine]", "[None]"), "returned None, which is not a subclass of lrbench.Reducer"),
        (PLUGIN.replace('    name = "mine"\n', ""), "Mine has no name"),
        (PLUGIN.replace('"mine"', '"My Own"'), "the name 'My Own' is not lower-case words joined by hyphens"),
        (PLUGIN.replace('"mine"', "3"), "the name 3 is not lower-case words"),
        (HEAD + "\n\n" + HOOK, "mine: overrides neither reduce nor prepare"),
        (HEAD + "    size: int\n" + BODY + HOOK, "mine: parameter 'size' has no default"),
        (HEAD + "    size: Nonsense = 3\n" + BODY + HOOK, "mine: its parameters cannot be used: NameError"),
        (HEAD + "    size: object() = 3\n" + BODY + HOOK, "mine: its parameters cannot be used: "),
        (HEAD + "    sizes: list = []\n" + BODY + HOOK, "ValueError: mutable default <class 'list'>"),
        (HEAD + "    label: str = ''\n" + BODY + HOOK, "a parameter must not be called 'label'"),
        (HEAD + "    needs = {'hessian'}\n" + BODY + HOOK, "mine: needs = {'hessian'}; it is a set of: absmean, "),
        (HEAD + "    needs = 'fisher'\n" + BODY + HOOK, "mine: needs = 'fisher'; it is a set of: "),
        (HEAD + "    promises = {'speed'}\n" + BODY + HOOK, "mine: promises = {'speed'}; it is a set of: "),
        (HEAD + "    def __post_init__(self):\n        raise TypeError('no')\n" + BODY + HOOK, "TypeError: no"),
    ],
)
def test_a_broken_plugin_is_recorded_in_one_line_and_breaks_nothing_else(plugin, of_files, text, error):
    sound = plugin(PLUGIN.replace('"mine"', '"sound"'), "a_sound.py")
    after = plugin(PLUGIN.replace('"mine"', '"after"'), "z_after.py")
    broken = plugin(text, "my_broken.py")
    registry = of_files(sound, broken, after)
    assert list(registry.reducers) == ["sound", "after"]
    assert error in broken_by(registry)
    with pytest.raises(PluginError) as caught:
        registry.get("my-broken")
    assert str(caught.value).startswith(f"reducer 'my-broken' cannot be used: {broken}: ")


def test_one_bad_class_leaves_the_others_of_its_plugin(plugin, of_files):
    registry = of_files(plugin(PLUGIN.replace("[Mine]", "[int, Mine]")))
    assert list(registry.reducers) == ["mine"]
    assert "int" in broken_by(registry)


def test_a_file_that_is_not_python_is_recorded(plugin, of_files):
    assert broken_by(of_files(plugin("hello", "notes.txt"))) == "not a Python file (*.py)"
    assert "null bytes" in broken_by(of_files(plugin("\0", "null.py")))


def test_an_interrupt_is_not_swallowed(plugin, of_files):
    with pytest.raises(KeyboardInterrupt):
        of_files(plugin("raise KeyboardInterrupt\n"))


def test_a_broken_entry_point_is_recorded(monkeypatch, tmp_path, plugin):
    plugin("raise SystemExit(9)\n", "module_that_exits.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = [
        EntryPoint("gone", "no_such_module_at_all", "lrbench"),
        EntryPoint("exits", "module_that_exits", "lrbench"),
    ]
    registry = Registry(entries=entries)
    assert registry.reducers == {}
    assert {broken.names for broken in registry.broken} == {("gone",), ("exits",)}
    with pytest.raises(PluginError, match=r"reducer 'exits' cannot be used: module_that_exits: it calls sys.exit"):
        registry.get("exits")


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path, of_files):
    with pytest.raises(PluginError, match=r"gone.py: no such plugin file"):
        of_files(tmp_path / "gone.py")
    with pytest.raises(PluginError, match="no plugin files"):
        of_files(tmp_path)


# Names


def test_a_taken_name_is_refused_for_a_file_naming_both(plugin, of_files):
    first, second = plugin(PLUGIN), plugin(PLUGIN, "again.py")
    with pytest.raises(PluginError) as caught:
        of_files(first, second)
    assert str(caught.value) == f"{second}: the reducer name 'mine' is taken by {first}"


def test_a_taken_name_is_recorded_for_an_entry_point_and_the_first_stays(plugin, monkeypatch, tmp_path):
    plugin(PLUGIN, "first_distribution.py")
    plugin(PLUGIN, "second_distribution.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = [EntryPoint(name, f"{name}_distribution", "lrbench") for name in ("second", "first")]
    registry = Registry(entries=entries)
    assert registry.source("mine") == "first_distribution"
    assert broken_by(registry) == "the reducer name 'mine' is taken by first_distribution"


def test_an_unknown_reducer_suggests_lists_and_names_suspects(plugin, of_files):
    registry = of_files(plugin(PLUGIN))
    with pytest.raises(PluginError, match=r"^unknown reducer 'mime'; did you mean 'mine'\?$"):
        registry.get("mime")
    with pytest.raises(PluginError, match=r"^unknown reducer 'xyzzy'; known: mine$"):
        registry.get("xyzzy")
    registry = of_files(plugin(PLUGIN), plugin("1 / 0", "bad.py"))
    with pytest.raises(PluginError, match=r"unknown reducer 'xyzzy'; known: mine; .*bad.py is broken: ZeroDivision"):
        registry.source("xyzzy")


def test_a_class_without_a_proper_name_is_found_by_its_plugin_and_its_name(plugin, of_files):
    registry = of_files(plugin(PLUGIN.replace('"mine"', '"My Own"'), "own.py"))
    for name in ("own", "My Own"):
        with pytest.raises(PluginError, match=r"cannot be used: .*is not lower-case"):
            registry.get(name)


# Parameters


@pytest.fixture
def registry(plugin, of_files):
    return of_files(plugin(HEAD + PARAMETERS + BODY + HOOK))


def test_parameters_from_a_suite_are_set(registry):
    params = {"oversample": 2, "tolerance": 1, "method": "svd", "weights": [1, 0.5], "exact": False, "limit": None}
    reducer = registry.build("mine", params)
    assert (reducer.oversample, reducer.tolerance, reducer.method) == (2, 1.0, "svd")
    assert (reducer.weights, reducer.exact, reducer.limit) == ((1.0, 0.5), False, None)
    assert values(reducer) == {**params, "tolerance": 1.0, "weights": [1.0, 0.5]}
    assert values(registry.build("mine"))["oversample"] == 8


@pytest.mark.parametrize(
    ("params", "parameter", "message"),
    [
        ({"oversampel": 3}, "oversampel", "mine: unknown parameter 'oversampel'; did you mean 'oversample'?"),
        (
            {"zzz": 3},
            "zzz",
            "mine: unknown parameter 'zzz'; it has oversample, tolerance, method, weights, exact, limit",
        ),
        ({"oversample": "8"}, "oversample", "mine: oversample: should be a valid integer, got '8'"),
        ({"oversample": True}, "oversample", "mine: oversample: should be a valid integer, got True"),
        ({"oversample": 1.5}, "oversample", "mine: oversample: should be a valid integer, got 1.5"),
        ({"tolerance": "0.1"}, "tolerance", "mine: tolerance: should be a valid number, got '0.1'"),
        ({"tolerance": True}, "tolerance", "mine: tolerance: should be a valid number, got True"),
        ({"tolerance": float("nan")}, "tolerance", "mine: tolerance: "),
        ({"method": "qrr"}, "method", "mine: method: should be 'qr' or 'svd', got 'qrr'"),
        ({"weights": "abc"}, "weights", "mine: weights: "),
        ({"exact": 1}, "exact", "mine: exact: should be a valid boolean, got 1"),
        ({"limit": "none"}, "limit", "mine: limit: should be a valid integer, got 'none'"),
        ({"limit": object()}, "limit", "mine: limit: TypeError: "),
        ({"oversample": -1}, None, "mine: oversample must not be negative"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name_in_one_line(registry, params, parameter, message):
    with pytest.raises(ParameterError) as caught:
        registry.build("mine", params)
    assert caught.value.parameter == parameter
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_reducer_without_parameters_says_so(plugin, of_files):
    with pytest.raises(ParameterError, match="unknown parameter 'x'; it has none"):
        of_files(plugin(PLUGIN)).build("mine", {"x": 1})


def test_parameters_are_described_as_a_person_writes_them(registry):
    assert registry.parameters("mine") == [
        ("oversample", "int", 8, "columns beyond the rank"),
        ("tolerance", "float", 0.1, ""),
        ("method", "'qr' | 'svd'", "qr", ""),
        ("weights", "tuple[float, ...]", (1.0,), ""),
        ("exact", "bool", True, ""),
        ("limit", "int | None", None, ""),
    ]


SELF_CONTRADICTORY = """
import lrbench


class Moody(lrbench.Reducer):
    \"\"\"Cannot say whether it draws.\"\"\"

    name = "moody"
    mood: str = "good"

    @property
    def WHAT(self):
        if self.mood == "bad":
            raise ZeroDivisionError("not today")
        return VALUE

    def reduce(self, weight, rank, context):
        return lrbench.Dense(weight)


@lrbench.hookimpl
def lrbench_reducers():
    return [Moody]
"""


@pytest.mark.parametrize(
    ("what", "value"),
    [("randomized", "False"), ("one_preparation", "True"), ("rank_of", "'weight'")],
)
def test_a_property_that_raises_is_an_error_of_its_plugin(what, value, tmp_path, capsys):
    file = tmp_path / "moody.py"
    text = SELF_CONTRADICTORY.replace("WHAT", what).replace("VALUE", value)
    file.write_text(text)
    registry = Registry.load([file])
    assert getattr(registry.build("moody"), what) is not None
    message = rf"'moody' \(lrbench_plugin_moody_.*its {what} fails: ZeroDivisionError: not today; mend the property"
    with pytest.raises(PluginError, match=message):
        registry.build("moody", {"mood": "bad"})
    file.write_text(text.replace('== "bad"', '== "good"'))
    broken = Registry.load([file])
    assert "moody" not in broken.reducers
    with pytest.raises(PluginError, match=rf"moody\.py: .*its {what} fails: ZeroDivisionError: not today"):
        broken.get("moody")


def test_a_plugin_that_cannot_say_whether_it_draws_is_refused_at_the_suites_line(tmp_path, capsys):
    from lrbench.cli import main

    (tmp_path / "moody.py").write_text(SELF_CONTRADICTORY.replace("WHAT", "randomized").replace("VALUE", "'maybe'"))
    (tmp_path / "s.yaml").write_text(
        "name: s\nmodel: {name: almanac}\nplugins: [moody.py]\ntasks: [almanac_text]\n"
        "reducers:\n  - moody: {mood: bad}\nsweep: [{rank: {keep: 0.5}}]\n"
    )
    assert main(["check", str(tmp_path / "s.yaml")]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert "s.yaml:6:5: reducer 'moody' cannot be used: " in line
    assert "its randomized is 'maybe'; it is True or False" in line
