import pytest

from lrbench.models.load import load_structure
from lrbench.reducers.registry import Registry
from lrbench.reduction.plan import make_plan, methods
from lrbench.suite.load import bundled_suites, load_suite
from tests.support.suites import run

#: suite -> its architecture in full size, as transformers' defaults or changes to them, and its types of matrices
HUB = {
    "laser-gptj": ({"model_type": "gptj"}, 28, 6),
    "laser-llama2": ({"model_type": "llama"}, 32, 7),
    "laser-pythia": (
        {"model_type": "gpt_neox", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32},
        32,
        6,
    ),
    "laser-llama3": ({"model_type": "llama", "num_key_value_heads": 8, "intermediate_size": 14336}, 32, 7),
}
#: What LASER's scripts call rates: ten times the share of the rank that goes.
RATES = [1.0, 2.0, 4.0, 6.0, 8.0, 9.0, 9.5, 9.9, 9.95]
ARENA = ["boolq", "arc_easy", "arc_challenge", "winogrande", "piqa", "hellaswag", "openbookqa"]


def planned(name, *overrides):
    suite = load_suite(name, list(overrides))
    built = methods(suite, Registry.load(suite.plugins))
    return suite, make_plan(suite, load_structure(suite.models[0]), built)


def test_every_suite_of_a_protocol_is_bundled():
    assert {*HUB, "laser", "lowrank-arena", "lowrank-arena-almanac", "quickstart"} <= bundled_suites().keys()


@pytest.mark.parametrize("name", HUB)
def test_a_hub_suite_of_lasers_has_every_layer_type_and_fraction_at_lasers_ranks(name):
    config, blocks, types = HUB[name]

    _, plan = planned(name, f"model={{config: {config}}}")

    cells = [cell for cell in plan.cells if cell.method is not None]
    assert len(cells) == blocks * types * len(RATES) * 2
    assert plan.impossible() == []
    assert {cell.method.label for cell in cells} == {"svd", "laser-svd"}
    seen = {}
    for cell in cells:
        (slot,) = cell.slots
        seen.setdefault((cell.method.label, slot.name), (slot.about.shape, []))[1].extend(cell.ranks())
    for shape, ranks in seen.values():
        # as `do_low_rank(weight, (10 - rate) * 0.1)` has it
        assert sorted(ranks) == sorted(int(min(shape) * ((10 - rate) * 0.1)) for rate in RATES)


def test_lasers_sweep_on_almanac_has_every_layer_type_and_fraction_that_is_a_rank():
    suite, plan = planned("laser")

    assert len(plan.cells) == 1 + 8 * 7 * 8 * 2
    assert plan.impossible() == []
    assert suite.seed == 0
    assert min(rank for cell in plan.cells if cell.method for rank in cell.ranks()) == 1


def test_lasers_own_variant_is_torchs_without_oversampling():
    _, plan = planned("laser", "sweep.0.layers=[7]")

    (reducer,) = {cell.method.reducer for cell in plan.cells if cell.method and cell.method.label == "laser-svd"}
    assert (reducer.oversample, reducer.power_iterations) == (0, 2)


def test_the_arenas_suites_ask_its_tasks_at_its_two_sizes():
    hub, almanac = load_suite("lowrank-arena"), load_suite("lowrank-arena-almanac")

    asked = {task.task: task for task in hub.tasks}
    assert list(asked) == ["wikitext2_tokens", "c4_tokens", *ARENA, "mathqa", "mmlu_math"]
    assert {asked[name].num_fewshot for name in ARENA} == {0}
    assert asked["c4_tokens"].limit * 2048 == 262144
    for suite in (hub, almanac):
        (sweep,) = suite.sweep
        assert sweep.mode == "together"
        assert sweep.rank.resolved() == {"keep_model": [0.8, 0.6]}
        assert methods(suite, Registry.load(()))


def test_lasers_sweep_runs_and_scores_the_thirds(tmp_path):

    overrides = ["sweep.0.layers=[7]", "sweep.0.weights=[fc_in]", "sweep.0.rank.fraction=[0.05]"]
    overrides += ["tasks=[{task: almanac_facts, limit: 10}]", "select.validation=0.5"]

    result = run(bundled_suites()["laser"], tmp_path / "out", overrides=overrides)

    rows = list(result.directory.rows().values())
    assert [row.status for row in rows] == ["ok"] * 6
    for side in ("validation", "test"):
        assert {row.label for row in rows if row.selection.split == side} == {None, "svd", "laser-svd"}
    for row in rows:
        assert row.scores.keys() == {"almanac_facts", *(f"almanac_facts_{t}" for t in ("frequent", "middle", "rare"))}


@pytest.mark.slow
def test_the_arenas_protocol_runs_on_almanac(tmp_path):
    suite = bundled_suites()["lowrank-arena-almanac"]
    overrides = [
        "sweep.0.layers=[7]",
        "calibration={name: almanac, samples: 16, length: 64}",
        "tasks=[{task: almanac_tokens, limit: 4}, {task: almanac_facts, limit: 5}]",
        "derived={MCQ: {mean: [almanac_facts]}}",
        "sweep.0.rank={keep_model: [0.98, 0.96]}",
    ]

    result = run(suite, tmp_path / "out", overrides=overrides)

    rows = list(result.directory.rows().values())
    assert [row.status for row in rows] == ["ok"] * 13
    assert all(row.scores["almanac_tokens"]["token_perplexity"].value > 1 for row in rows)
