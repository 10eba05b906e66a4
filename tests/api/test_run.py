"""`lrbench.run`: a suite as a file, a mapping or a Suite, with classes as reducers; and the name that it has."""

import re
import subprocess
import sys

import pytest

import lrbench
from lrbench.errors import InputError, SuiteError
from lrbench.run.executors import LocalExecutor
from lrbench.suite.load import load_suite
from tests.support.slow_cases import slow_cases
from tests.support.suites import write_suite

NAN = float("nan")
SUITE = {
    "name": "small",
    "model": {"name": "almanac", "device": "cpu"},
    "tasks": [{"task": "almanac_agreement", "limit": 4}],
    "reducers": ["svd"],
    "sweep": [{"mode": "each", "layers": (7,), "weights": ["mlp.down"], "rank": {"keep": [0.5]}}],
}


class FirstColumns(lrbench.Reducer):
    """The first columns."""

    name = "first-columns"
    power: int = 1

    def reduce(self, weight, rank, context):
        import torch

        return lrbench.ColumnSubset(weight[:, :rank] ** self.power, torch.arange(rank), in_features=weight.shape[1])


@pytest.mark.parametrize(
    "imports",
    [
        "import lrbench.run.runner, lrbench",
        *slow_cases(
            "import lrbench; lrbench.run; import lrbench.run.runner",
            "from lrbench import run; from lrbench.run import runner, model_run; import lrbench",
        ),
    ],
)
def test_the_function_is_not_hidden_by_the_package_of_the_same_name(imports):
    code = (
        f"{imports}\nfrom lrbench.run.runner import run_suite\nfrom lrbench.run import recorder\nimport pickle\n"
        "assert callable(lrbench.run) and lrbench.run.__module__ == 'lrbench.api.run'\n"
        "assert pickle.loads(pickle.dumps(recorder.Stop())) == recorder.Stop()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_mapping_a_file_and_a_suite_are_one_run(tmp_path):
    first = lrbench.run(SUITE, reducers=["svd", FirstColumns], out=tmp_path / "run")
    assert [(row.label, row.status) for row in first] == [(None, "ok"), ("svd", "ok"), ("first-columns", "ok")]
    assert [row.label for row in lrbench.read_results(tmp_path / "run")] == [row.label for row in first]
    rows = (tmp_path / "run" / "rows.jsonl").read_text()
    suite = load_suite(SUITE, {"reducers": ["svd", FirstColumns]})
    assert lrbench.run(suite, out=tmp_path / "run") == first
    assert (tmp_path / "run" / "rows.jsonl").read_text() == rows


def test_a_file_takes_overrides_by_their_dotted_paths(tmp_path):
    suite = load_suite(write_suite(tmp_path), {"sweep.0.rank.keep": [0.25], "reducers": [FirstColumns(power=2)]})
    assert [(spec.name, spec.params) for spec in suite.reducers] == [("first-columns", {"power": 2})]
    assert suite.sweep[0].rank.requests[0].value == 0.25
    assert suite.classes == [FirstColumns]


class Nameless(lrbench.Reducer):
    """Has no name."""


class Taken(FirstColumns):
    """Has another's name."""

    name = "svd"


@pytest.mark.parametrize(
    ("changes", "arguments", "words"),
    [
        ({"modle": 1}, {}, "suite['modle']: unknown key 'modle'; did you mean 'model'?"),
        ({"seed": object()}, {}, "suite['seed']: a suite holds plain data and classes of reducers, not object"),
        ({"tasks": ["no_such"]}, {}, "suite['tasks'][0]: unknown task 'no_such'"),
        (
            {"sweep": [{**SUITE["sweep"][0], "rank": {"keep": NAN}}]},
            {},
            "['keep']: nan is not a finite number",
        ),
        ({3: 1}, {}, "suite: a key must be a word, not 3"),
        ({}, {"overrides": {"sweep.7.mode": "each"}}, "overrides['sweep.7.mode']: sweep has 1 entries"),
        ({}, {"limit": 0}, "limit 0: must be a whole number"),
        ({}, {"dtype": "float8"}, "dtype 'float8': must be one of"),
        ({}, {"engine": "fast"}, "engine='fast': choose one of sweep"),
        ({}, {"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({}, {"executor": "slurm"}, "executor='slurm': choose one of local, ray"),
        ({}, {"executor": object()}, "executor: must be a name or an executor, not object"),
        ({}, {"executor": LocalExecutor}, "executor: must be a name or an executor, not type"),
        ({}, {"overrides": ["seed=1"]}, "overrides: must be a mapping such as {'sweep.0.rank.keep': [0.5]}, not list"),
        ({}, {"reducers": 3}, "reducers: must be a list of reducers, not int"),
        ({}, {"plugins": None}, "plugins: must be a path, not NoneType"),
        ({}, {"out": 3}, "out: must be a path, not int"),
        ({}, {"reducers": [Taken]}, "the reducer name 'svd' is taken by"),
        ({}, {"reducers": [Nameless]}, "Nameless"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_computed(tmp_path, changes, arguments, words):
    with pytest.raises(InputError, match=re.escape(words)) as raised:
        lrbench.run({**SUITE, **changes}, **{"out": tmp_path / "run", **arguments})
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_suite_is_refused_overrides_and_another_thing_is_no_suite():
    with pytest.raises(InputError, match="a Suite cannot be changed"):
        lrbench.run(load_suite(SUITE), overrides={"seed": 1})
    with pytest.raises(InputError, match="not int"):
        lrbench.run(3)
    with pytest.raises(SuiteError, match="no such file"):
        lrbench.run("nowhere.yaml")
    with pytest.raises(InputError, match="run: must be a path, not NoneType"):
        lrbench.read_results(None)
