"""`lrbench.plan`: what a run would do, as `lrbench check` prints it, without computing anything."""

import pytest

import lrbench
from lrbench.cli import main
from lrbench.errors import InputError

SUITE = {
    "name": "planned",
    "model": {"name": "almanac", "device": "cpu"},
    "tasks": [{"task": "almanac_agreement", "limit": 4}],
    "reducers": ["svd"],
    "sweep": [{"mode": "each", "layers": [6, 7], "weights": ["mlp.down"], "rank": {"rank": [8, 100_000]}}],
}


def test_a_plan_has_cells_ranks_weights_and_failures(tmp_path):
    plan = lrbench.plan(SUITE, out=tmp_path / "run")
    (model,) = plan.models
    assert [cell.setting for cell in model.cells] == ["", "rank 8", "rank 100000", "rank 8", "rank 100000"]
    assert model.cells[1].ranks() == [8]
    assert "model.layers.7.mlp.down_proj.weight" in model.weights
    assert plan.would_fail
    assert [cell.setting for cell, _ in model.failures] == ["rank 100000"] * 2
    assert "would fail" in repr(plan)
    assert plan._repr_html_().startswith("<pre>planned")
    assert not (tmp_path / "run").exists()


def test_the_rank_of_a_shape_is_computed_once():
    def calls(layers):
        counted = []

        class Counted(lrbench.Reducer):
            name = "counted"

            def reduce(self, weight, rank, context):
                raise AssertionError

            def stored_numbers(self, shape, rank):
                counted.append((shape, rank))
                return rank * sum(shape)

        sweep = [{"layers": layers, "weights": ["mlp.down"], "rank": {"keep": [0.5, 0.25]}}]
        plan = lrbench.plan({**SUITE, "reducers": [], "sweep": sweep}, reducers=[Counted])
        assert "rank" in str(plan)
        return counted

    assert calls("all") == calls([0]) != []


def test_a_plan_prints_as_check_does(capsys):
    assert main(["check", "quickstart"]) == 0
    assert str(lrbench.plan("quickstart")) == capsys.readouterr().out.rstrip("\n")


def test_a_wrong_suite_is_refused_in_one_line():
    with pytest.raises(InputError, match="did you mean 'model'") as raised:
        lrbench.plan({**SUITE, "modle": 1})
    assert "\n" not in str(raised.value)
