"""`keep_model`: cells whose weights share a budget, from suites to rows and back."""

import dataclasses

import pytest
import torch

import lrbench.reduction.calibration.loss as loss_module
from lrbench.analysis.leaderboard import build
from lrbench.analysis.scored_run import lines_of
from lrbench.cli import main
from lrbench.errors import LrbenchError, ReducerError, SuiteError
from lrbench.models.load import load, weight_hash
from lrbench.models.slot_search import find_slots
from lrbench.models.slots import count_parameters
from lrbench.reducers.base import Prepared, Reducer, Slot
from lrbench.reducers.ranks import RankRequest, worthwhile_ranks
from lrbench.reducers.registry import Registry
from lrbench.reduction.allocation.budget import TOLERANCE, Budget, RankOptions, options_by_shape, ranks_by_shape, tied
from lrbench.reduction.allocation.loss_curves import interpolated
from lrbench.reduction.allocator import Allocator
from lrbench.reduction.calibration.loss import text_loss
from lrbench.reduction.cell_reducer import CellReducer
from lrbench.reduction.plan import Cell, Method, Plan, refusal
from lrbench.results.rows import Row
from lrbench.run.recompute import compute_again
from lrbench.suite.load import ModelSpec, load_suite
from tests.support.suites import run, write_suite
from tests.support.tiny_models import tiny

torch.set_num_threads(1)

SHARED = """\
name: shared
model: {name: almanac, device: cpu}
tasks:
  - {task: almanac_facts_rare, limit: 4}
reducers: [svd]
sweep:
  - {mode: together, layers: last 2, weights: [all], rank: {keep_model: [0.9]}, allocation: uniform}
  - {mode: together, layers: last 2, weights: [all], rank: {keep_model: [0.9]}, allocation: error}
"""


@pytest.fixture(scope="module")
def almanac():
    return load(ModelSpec(name="almanac"), device="cpu")


def method(name="svd", **params):
    return Method(name, Registry.load().build(name, params), params, "")


def cells(loaded, of, keeps, allocation="error", layers=(6, 7), weights=("all",), seed=None):
    slots = tuple(loaded.inventory.select(layers, list(weights)))
    return [
        Cell(of, "together", slots, RankRequest("keep_model", keep), min(layers), seed=seed, allocation=allocation)
        for keep in keeps
    ]


def reduced(loaded, of, keep, allocation="error", calibration=None, **which):
    [(_, outcome)] = CellReducer(0, calibration).reduce_group(cells(loaded, of, [keep], allocation, **which))
    if isinstance(outcome, LrbenchError):
        raise outcome
    return outcome


def achieved(loaded, reductions):
    numbers = count_parameters(loaded.model)
    saved = sum(r.edit.shape[0] * r.edit.shape[1] - r.edit.stored_numbers for r in reductions)
    return 1 - saved / numbers


def summed(reductions):
    return sum(r.edit.relative_error**2 for r in reductions)


@pytest.mark.parametrize("allocation", ["uniform", "error"])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("svd", {}),
        ("svd", {"store": "pivoted"}),
        ("cur", {}),  # prepared for each rank alone
        ("random-subspace", {}),  # knows no curve
        ("monarch", {}),  # stores less than it says at some ranks
        ("cr", {"sampling": "random"}),  # stores less than it says at all of them
    ],
)
def test_the_size_is_what_was_asked_within_a_fifth_of_a_percent_and_never_above(almanac, name, params, allocation):
    found = reduced(almanac, method(name, **params), 0.9, allocation)
    assert 0.9 * (1 - TOLERANCE) <= achieved(almanac, found) <= 0.9
    assert all(r.edit.stored_as == ("dense" if r.edit.allocated == "whole" else "factors") for r in found)


def test_equal_shares_are_equal(almanac):
    shares = [
        r.edit.stored_numbers / (r.edit.shape[0] * r.edit.shape[1]) for r in reduced(almanac, method(), 0.9, "uniform")
    ]
    assert max(shares) - min(shares) < 0.02
    assert all(r.allocate_seconds == 0 for r in reduced(almanac, method(), 0.9, "uniform"))


def test_ranks_shared_out_by_error_lose_less_than_equal_shares_and_no_rank_is_not_worth_its_storage(almanac):
    by_error, equal = (reduced(almanac, method(), 0.9, kind) for kind in ("error", "uniform"))
    assert summed(by_error) < 0.97 * summed(equal)
    for one in by_error:
        m, n = one.edit.shape
        assert one.edit.allocated == "whole" or one.edit.rank * (m + n) < m * n
        assert one.edit.allocated in ("whole", one.edit.rank)
    assert all(r.allocate_seconds > 0 for r in by_error)


def test_the_summed_error_is_near_the_least_that_any_shares_have(almanac):
    found = reduced(almanac, method(), 0.9)
    slots = cells(almanac, method(), [0.9])[0].slots
    budget = Budget.of(slots, 0.9).max_stored
    # By price: for each lambda every weight takes what minimizes error + lambda * size; a bound from below for any.
    curves = []
    for slot in slots:
        squares = torch.linalg.svdvals(slot.read().double()).square()
        tails = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)]) / squares.sum()
        m, n = slot.about.shape
        ranks = torch.arange(1, -(-m * n // (m + n)))
        curves.append(
            (torch.cat([tails[ranks], tails.new_zeros(1)]), torch.cat([ranks * (m + n), ranks.new_tensor([m * n])]))
        )
    bounds = [
        sum(float((errors + price * sizes).min()) for errors, sizes in curves) - price * budget
        for price in torch.logspace(-8, -4, 400, dtype=torch.float64).tolist()
    ]
    assert max(bounds) * (1 - 1e-3) <= summed(found) <= max(bounds) * 1.03


def test_a_weight_that_stays_as_it_is_is_recorded_and_not_changed_by_a_bit(almanac):
    found = reduced(almanac, method(), 0.95)
    slots = cells(almanac, method(), [0.95])[0].slots
    whole = [(slot, r) for slot, r in zip(slots, found, strict=True) if r.edit.allocated == "whole"]
    assert 0 < len(whole) < len(slots)
    for slot, one in whole:
        assert torch.equal(one.matrix(), slot.read())
        edit = one.edit
        assert (edit.rank, edit.stored_numbers, edit.stored_as) == (min(edit.shape), slot.size, "dense")
        assert (edit.relative_error, edit.optimal_error, one.seconds) == (0.0, 0.0, 0.0)


def test_what_a_budget_gives_does_not_depend_on_the_others_of_its_group(almanac):
    together = CellReducer(0).reduce_group(cells(almanac, method("cur"), [0.97, 0.95], seed=3, layers=(7,)))
    ranks = {cell.request.value: [r.edit.allocated for r in outcome] for cell, outcome in together}
    for keep in (0.97, 0.95):
        [(_, alone)] = CellReducer(0).reduce_group(cells(almanac, method("cur"), [keep], seed=3, layers=(7,)))
        assert [r.edit.allocated for r in alone] == ranks[keep]


def test_a_budget_that_nothing_fits_names_the_smallest_that_does(almanac):
    [cell] = cells(almanac, method(), [0.3], "uniform")
    with pytest.raises(ReducerError) as raised:
        cell.ranks()
    message = str(raised.value)
    assert message.startswith("keep_model 0.3 is too small: these weights by svd store at least ")
    [(failed, reason)] = Plan((cell,)).impossible()
    assert (failed, reason) == (cell, message)
    with pytest.raises(ReducerError, match="too small"):
        reduced(almanac, method(), 0.3)
    smallest = float(message.rpartition(" ")[2])
    assert dataclasses.replace(cell, request=RankRequest("keep_model", smallest)).ranks() == [1] * len(cell.slots)
    below = dataclasses.replace(cell, request=RankRequest("keep_model", smallest - 1e-3))
    with pytest.raises(ReducerError, match="too small"):
        below.ranks()


def test_check_knows_the_ranks_of_equal_shares(almanac):
    [cell] = cells(almanac, method(), [0.9], "uniform")
    assert cell.ranks() == [r.edit.rank for r in reduced(almanac, method(), 0.9, "uniform")]
    [cell] = cells(almanac, method(), [0.9], "error")
    assert cell.ranks() == [None] * len(cell.slots)


def test_a_size_that_is_out_of_reach_is_said(almanac):
    slots = cells(almanac, method(), [1.0])[0].slots
    budget = Budget.of(slots, 0.9)
    with pytest.raises(ReducerError, match=r"reaches at most 0\.\d+ on these weights, more than 0.2% below; request"):
        budget.refuse_missed(budget.min_stored - 1, "svd")
    with pytest.raises(ReducerError, match="svd stores more than its stored_numbers says"):
        budget.refuse_missed(budget.max_stored + 1, "svd")
    budget.refuse_missed(budget.min_stored, "svd")
    budget.refuse_missed(budget.max_stored, "svd")


class Coarse(Reducer):
    """Two sizes and no more."""

    name = "coarse"

    def reduce(self, weight, rank, context):
        return method().reducer.reduce(weight, rank, context)

    def stored_numbers(self, shape, rank):
        return rank * sum(shape)

    def max_rank(self, shape):
        return 2


class Breaks(Coarse):
    """Fails on one weight, and only when its curve is asked for."""

    name = "breaks"

    def prepare(self, weight, ranks, context):
        prepared = super().prepare(weight, ranks, context)

        class Failing(Prepared):
            def at_rank(self, rank):
                return prepared.at_rank(rank)

            def errors(self, ranks):
                raise RuntimeError("no curve today")

        return Failing()


def test_a_method_with_too_few_sizes_fails_instead_of_missing_the_budget(almanac):
    coarse = Method("coarse", Coarse(), {}, "")
    with pytest.raises(ReducerError, match="coarse reaches at most"):
        reduced(almanac, coarse, 0.97, layers=(7,), weights=("mlp",))


def test_a_method_that_fails_on_the_way_to_its_ranks_fails_every_cell_and_names_the_weight(almanac):
    breaks = Method("breaks", Breaks(), {}, "")
    outcomes = list(CellReducer(0).reduce_group(cells(almanac, breaks, [0.95, 0.9])))
    assert len(outcomes) == 2
    for _, outcome in outcomes:
        assert isinstance(outcome, ReducerError)
        assert str(outcome).startswith("model.layers.6.self_attn.q_proj.weight: breaks: RuntimeError: no curve today")


def test_worthwhile_ranks_store_less_than_the_matrix_and_more_than_smaller_ones():
    class Dips(Coarse):
        name = "dips"

        def stored_numbers(self, shape, rank):
            return {1: 30, 2: 20, 3: 40, 4: 99, 5: 100}[rank]

        def max_rank(self, shape):
            return 5

    assert worthwhile_ranks(Dips(), Slot("w", 0, None, (10, 10))) == [(2, 20), (3, 40), (4, 99)]


def test_a_tied_weight_has_no_size_of_its_own():
    model = tiny("gpt2")
    head = [slot for slot in find_slots(model).slots if slot.about.role == "head"]
    skip, failure = refusal(method(), tuple(head), "uniform")
    assert skip is None
    assert failure == tied(head)
    assert "is tied to another weight" in failure
    assert refusal(method(), tuple(head)) == (None, None)


def test_losses_measured_at_some_ranks_are_carried_to_the_others():
    import numpy as np

    squares = np.array([0.9, 0.5, 0.3, 0.1, 0.0])
    found = interpolated(squares, {0.5: 1.0, 0.1: 0.1})
    assert found.tolist() == pytest.approx([1.0 + 0.4 * 2.25, 1.0, 0.55, 0.1, 0.0])
    assert (np.diff(interpolated(squares, {0.5: 0.2, 0.3: 0.6, 0.1: -0.3})) <= 1e-12).all()
    assert interpolated(squares, {0.0: 0.0}).tolist() == [0.0] * 5


class Text:
    """Statistics of made-up inputs, and a loss that only one weight changes."""

    def __init__(self, loaded, matters):
        self.loaded, self.matters, self.original = loaded, matters, matters.read().clone()
        self.asked = 0

    def statistics(self, slot, needs):
        return {}, 0.0

    def second_moment(self, slot):
        size = slot.about.shape[1]
        values = torch.logspace(0, -4, size, dtype=torch.float64)
        return torch.diag(values)

    def loss_moments(self, slot):
        return None

    def loss(self):
        self.asked += 1
        return 5.0 + float((self.matters.read() - self.original).norm() / self.original.norm())


def test_measured_loss_keeps_what_matters_and_leaves_the_model_as_it_was(almanac):
    slots = cells(almanac, method(), [0.96], layers=(7,))[0].slots
    text = Text(almanac, slots[5])
    found = reduced(almanac, method(), 0.96, "sensitivity", calibration=text, layers=(7,))
    assert text.asked == 1 + 3 * len(slots)
    assert found[5].edit.allocated == "whole"
    assert 0.96 * (1 - TOLERANCE) <= achieved(almanac, found) <= 0.96
    assert weight_hash(almanac.model) == almanac.weight_hash


def test_output_errors_are_shared_out_by_the_inputs(almanac):
    slots = cells(almanac, method(), [0.93])[0].slots
    text = Text(almanac, slots[0])

    def lost(reductions):
        total = 0.0
        for slot, one in zip(slots, reductions, strict=True):
            W, H = slot.read().double(), text.second_moment(slot)
            E = W - one.matrix().double()
            total += float(((E @ H) * E).sum() / ((W @ H) * W).sum())
        return total

    by_output = reduced(almanac, method(), 0.93, "output-error", calibration=text)
    assert 0.93 * (1 - TOLERANCE) <= achieved(almanac, by_output) <= 0.93
    assert lost(by_output) < lost(reduced(almanac, method(), 0.93))


def test_the_loss_of_text_is_that_of_the_plain_model(monkeypatch):
    model = tiny("llama")
    windows = torch.randint(1, 97, (5, 12), generator=torch.Generator().manual_seed(0))
    expected = torch.stack([model(window[None], labels=window[None]).loss for window in windows]).mean()
    assert text_loss(model, windows) == pytest.approx(float(expected), rel=1e-5)
    monkeypatch.setattr(loss_module, "_LOGIT_BYTES", 1)  # one window at a time
    assert text_loss(model, windows) == pytest.approx(float(expected), rel=1e-5)
    assert text_loss(model, windows[:, :1]) == 0.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    return run(write_suite(folder, SHARED), folder / "out").directory


def test_two_allocations_are_two_cells_that_a_table_tells_apart(finished):
    rows = [row for row in finished.rows().values() if row.reducer]
    assert len({row.cell for row in rows}) == 2
    assert len(lines_of(rows)) == 2
    for row in rows:
        assert row.requested == {"keep_model": 0.9}
        assert 0.9 * (1 - TOLERANCE) <= row.keep_model <= 0.9
        assert len(row.edits) == 14
        assert all(edit.allocated is not None for edit in row.edits)
    assert {row.allocation: row.allocate_seconds > 0 for row in rows} == {"uniform": False, "error": True}
    entries = [entry.values for entry in build([finished]).entries]
    assert {(e["method"], e["setting"]) for e in entries} == {
        ("baseline", ""), ("svd, uniform", "keep_model 0.9"), ("svd, error", "keep_model 0.9"),
    }  # fmt: skip


def test_a_row_is_made_again_from_the_ranks_that_it_records(finished, monkeypatch):
    monkeypatch.setattr(Allocator, "reduce", lambda *_: pytest.fail("ranks were looked for again"))
    for row in finished.rows().values():
        if row.reducer:
            again = compute_again(finished, row.cell)
            for one, edit in zip(again.reductions, row.edits, strict=True):
                assert (one.edit.weight, one.edit.rank) == (edit.weight, edit.rank)
                assert one.edit.stored_numbers == edit.stored_numbers


def test_hashes_of_other_cells_do_not_know_of_allocations(almanac):
    [cell] = cells(almanac, method(), [0.9], "uniform")
    plain = dataclasses.replace(cell, allocation=None)
    digests = {kind: dataclasses.replace(cell, allocation=kind).digest(seed=0) for kind in ("uniform", "error")}
    assert len({plain.digest(seed=0), *digests.values()}) == 3
    row = Row(cell="c", status="ok", environment="", suite="s", model="m", label="svd", requested={"keep": 0.5})
    assert (row.method, row.setting) == ("svd", "keep 0.5")


def test_check_and_its_probe_take_such_cells(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = write_suite(tmp_path, SHARED)
    assert main(["check", "--probe", str(suite)]) == 0
    shown = capsys.readouterr().out
    assert "keep_model 0.9, uniform    1 cells,    14 reductions, rank " in shown
    assert "keep_model 0.9, error      1 cells,    14 reductions, rank found when run" in shown
    assert "not in the time: ranks of some cells, which are found from curves of every weight" in shown


SWEEP = "[{mode: %s, weights: [mlp], rank: {%s}%s}]"


@pytest.mark.parametrize(
    ("sweep", "extra", "message"),
    [
        (SWEEP % ("each", "keep_model: 0.8", ""), "", "7:45: 'keep_model' is the size of the whole model"),
        (SWEEP % ("layer", "keep_model: 0.8", ""), "", "write 'mode: together' instead of 'layer', or 'keep'"),
        (SWEEP % ("together", "keep: 0.8", ", allocation: error"), "", "7:61: 'allocation' allocates the parameters"),
        (SWEEP % ("together", "keep_model: 0.8", ", allocation: eror"), "", "'eror'; did you mean 'error'?"),
        (SWEEP % ("together", "keep_model: 1.1", ""), "", "'keep_model' must be at most 1, not 1.1"),
        (SWEEP % ("together", "keep_model: [0.8, 0.8]", ""), "", "0.8 is listed twice"),
        (
            SWEEP % ("together", "keep_model: 0.8", ", allocation: output-error"), "",
            "'allocation: output-error' needs calibration; add `calibration: {text: FILE}` to the suite",
        ),
        (
            SWEEP % ("together", "keep_model: 0.8", ", allocation: sensitivity"), "",
            "'allocation: sensitivity' needs calibration; add `calibration: {text: FILE}` to the suite",
        ),
        (
            SWEEP % ("together", "keep_model: 0.8", ""), "delta: {base: {name: almanac}}",
            "'keep_model' does not go with 'delta'",
        ),
    ],
)  # fmt: skip
def test_suites_that_cannot_be_meant_are_refused_where_they_say_it(tmp_path, sweep, extra, message):
    path = tmp_path / "suite.yaml"
    start = "name: bad\nmodel: {name: almanac}\ntasks: [almanac_text]\nreducers: [svd]\nseed: 0\n\n"
    path.write_text(f"{start}sweep: {sweep}\n{extra}\n")
    with pytest.raises(SuiteError) as raised:
        load_suite(path)
    assert message in str(raised.value)


def test_an_allocation_left_out_is_uniform_and_the_same_suite(tmp_path):
    text = "name: a\nmodel: {name: almanac}\ntasks: [almanac_text]\nreducers: [svd]\nsweep:\n  - %s\n"
    suites = []
    for allocation in ("", ", allocation: uniform", ", allocation: null", ", allocation: error"):
        path = tmp_path / "suite.yaml"
        path.write_text(text % f"{{mode: together, rank: {{keep_model: 0.8}}{allocation}}}")
        suites.append(load_suite(path))
    assert [suite.sweep[0].shared_by for suite in suites] == ["uniform", "uniform", "uniform", "error"]
    assert len({suite.hash for suite in suites[:3]}) == 1
    assert suites[3].hash != suites[0].hash


def test_equal_shapes_share_their_options(almanac):
    choices = options_by_shape(method().reducer, cells(almanac, method(), [0.9])[0].slots)
    assert all(isinstance(one, RankOptions) for one in choices)
    assert choices[0] is choices[1]
    assert ranks_by_shape(method().reducer, "svd", cells(almanac, method(), [0.9])[0].slots, 1.0, "uniform")[0] == 192


CALIBRATED = """\
name: calibrated
model: {name: almanac, device: cpu}
tasks:
  - {task: almanac_facts_rare, limit: 4}
reducers: [svd, svd-llm]
sweep:
  - {mode: together, layers: [7], weights: [all], rank: {keep_model: 0.96}, allocation: error}
  - {mode: together, layers: [7], weights: [all], rank: {keep_model: 0.96}, allocation: output-error}
  - {mode: together, layers: [7], weights: [all], rank: {keep_model: 0.96}, allocation: sensitivity, reducers: [svd]}
calibration: {name: almanac, samples: 8, length: 128}
"""


@pytest.mark.slow
def test_allocations_by_text_run_and_are_of_the_text(tmp_path, monkeypatch):
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))
    suite = write_suite(tmp_path, CALIBRATED)
    directory = run(suite, tmp_path / "one").directory
    rows = {(row.label, row.allocation): row for row in directory.rows().values() if row.reducer}
    assert len(rows) == 5
    for row in rows.values():
        assert row.status == "ok", row.reason
        assert 0.96 * (1 - TOLERANCE) <= row.keep_model <= 0.96
        assert row.allocate_seconds > 0
    of_output = {
        kind: sum(e.output_error**2 for e in rows["svd-llm", kind].edits) for kind in ("error", "output-error")
    }
    assert of_output["output-error"] < of_output["error"]
    again = compute_again(directory, rows["svd", "sensitivity"].cell)
    assert [one.edit.rank for one in again.reductions] == [edit.rank for edit in rows["svd", "sensitivity"].edits]
    other = run(suite, tmp_path / "two", overrides=["calibration.seed=1"]).directory
    cells = {row.cell for row in other.rows().values()}
    assert {key for key, row in rows.items() if row.cell in cells} == {("svd", "error")}
