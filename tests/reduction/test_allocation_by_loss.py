"""`allocation: loss`: ranks by predicted losses, the family tried on held-out text, and suites and rows with it."""

import dataclasses

import numpy as np
import pytest
import torch

from lrbench.errors import ReducerError, SpoiltModelError, SuiteError
from lrbench.models.load import load, weight_hash
from lrbench.reducers.base import Prepared, Reducer
from lrbench.reducers.ranks import RankRequest
from lrbench.reducers.registry import Registry
from lrbench.reduction.allocation.budget import TOLERANCE, Budget, RankOptions
from lrbench.reduction.allocation.family import EQUAL, LEAST, candidates
from lrbench.reduction.allocation.knapsack import Options
from lrbench.reduction.allocation.loss_curves import with_measured
from lrbench.reduction.calibration.loss_moments import LossMoments
from lrbench.reduction.calibration.samples import HELD_OUT, draw
from lrbench.reduction.cell_reducer import CellReducer
from lrbench.reduction.plan import Cell, Method, refusal
from lrbench.suite.load import ModelSpec, load_suite
from tests.reduction.test_calibration_run import own_cache  # noqa: F401
from tests.reduction.test_predicted_loss import COLUMNS
from tests.support.suites import run, write_suite

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def almanac():
    return load(ModelSpec(name="almanac"), device="cpu")


def method(name="svd", **params):
    return Method(name, Registry.load().build(name, params), params, "")


def cells(loaded, of, keeps, allocation="loss", layers=(6, 7), weights=("all",)):
    slots = tuple(loaded.inventory.select(layers, list(weights)))
    return [
        Cell(of, "together", slots, RankRequest("keep_model", keep), min(layers), allocation=allocation)
        for keep in keeps
    ]


class Text:
    """Made-up moments, and a loss on held-out text: the squared changes of the weights times their importance."""

    held_out_tokens = 512

    def __init__(self, loaded, cell, importance=lambda place: 1.0):
        self.slots = cell.slots
        self.originals = [slot.read().clone() for slot in cell.slots]
        self.importance, self.asked = importance, 0
        self.model = loaded.model

    def statistics(self, slot, needs):
        return {}, 0.0

    def loss_moments(self, slot):
        m, n = slot.about.shape
        H, G = (torch.diag(torch.logspace(0, -3, size, dtype=torch.float64)) for size in (n, m))
        return LossMoments(H, G / (1 + self.slots.index(slot)))

    def held_out_loss(self):
        self.asked += 1
        changes = [
            float((slot.read() - original).square().sum() / original.square().sum())
            for slot, original in zip(self.slots, self.originals, strict=True)
        ]
        return 2.0 + sum(self.importance(place) * change for place, change in enumerate(changes))


def reduced(loaded, of, keep, text=None, importance=lambda place: 1.0, **which):
    [cell] = cells(loaded, of, [keep], **which)
    text = text or Text(loaded, cell, importance)
    [(_, outcome)] = CellReducer(0, text).reduce_group([cell])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome, text


def predicted(reductions, text):
    slots = zip(text.slots, reductions, strict=True)
    return sum(text.loss_moments(slot).of_change(slot.read() - one.matrix()) for slot, one in slots)


# The family


def some_options(seed=0, weights=12):
    random = np.random.default_rng(seed)
    made = []
    for _ in range(weights):
        ranks = np.arange(1, 40)
        losses = float(random.uniform(0.01, 10)) * np.exp(-ranks / float(random.uniform(4, 30)))
        options = Options(np.append(ranks * 100, 5000).astype(np.int64), np.append(losses, 0.0))
        made.append(RankOptions(tuple(ranks.tolist()), options, dropped=float(losses[0]) * 1.1))
    return made


def test_the_family_lies_between_equal_fractions_and_the_least_loss_and_fills_the_budget():
    weights, budget = some_options(), Budget(0.6, 60_000, 0)
    family = candidates(weights, budget, "svd")
    assert next(iter(family)) == EQUAL
    equal = [int(w.options.sizes[place]) for w, place in zip(weights, family[EQUAL].choice, strict=True)]
    for name, allocation in family.items():
        sizes = [int(w.options.sizes[place]) for w, place in zip(weights, allocation.choice, strict=True)]
        assert budget.min_stored <= sum(sizes) == allocation.size <= budget.max_stored
        floor = float(name.removeprefix("floor ")) if name.startswith("floor") else 0.0
        assert all(size >= floor * of_equal for size, of_equal in zip(sizes, equal, strict=True))
        losses = sum(float(w.options.losses[p]) for w, p in zip(weights, allocation.choice, strict=True))
        assert losses >= sum(float(w.options.losses[p]) for w, p in zip(weights, family[LEAST].choice, strict=True))
    assert {"floor 0.8", "tempered"} <= set(family)
    assert len({allocation.choice for allocation in family.values()}) == len(family)


def test_a_family_whose_members_agree_has_one_member():
    weights = [dataclasses.replace(some_options(weights=1)[0]) for _ in range(3)]
    assert list(candidates(weights, Budget(1.0, 15_000, 0), "svd")) == [EQUAL]


def test_between_measured_ranks_a_loss_never_grows_with_the_rank():
    ranks = tuple(range(1, 21))
    options = Options(np.arange(1, 22, dtype=np.int64), np.zeros(21))
    measured = {1: 8.0, 5: 2.0, 10: 3.0, 15: 0.5, 20: 0.0}  # rank 10 loses more than rank 5
    curve = with_measured(RankOptions(ranks, options, measured), np.zeros(20)).options.losses
    assert (np.diff(curve) <= 0).all()
    assert curve[[0, 4, 9, 14]] == pytest.approx([8.0, 2.0, 2.0, 0.5])
    assert curve[2] == pytest.approx(4.0)  # between 8 and 2, on a logarithmic scale


# The choice


def test_the_allocation_that_loses_least_on_held_out_text_is_taken(almanac):
    found, text = reduced(almanac, method(), 0.93)
    trial = found[0].trial
    assert all(one.trial is trial for one in found)
    assert trial.losses[trial.chosen] == min(trial.losses.values())
    assert text.asked == 1 + len(trial.losses)
    assert (trial.baseline, trial.tokens) == (2.0, 512)
    chosen = 2.0 + sum(one.edit.relative_error**2 for one in found)
    assert trial.losses[trial.chosen] == pytest.approx(chosen - 2.0, rel=1e-3)
    assert sum(one.allocate_seconds for one in found) >= trial.seconds >= 0
    assert weight_hash(almanac.model) == almanac.weight_hash


def test_where_the_estimate_does_not_hold_equal_fractions_stay(almanac):
    # What the moments call unimportant loses most, so that every step from equal fractions costs.
    found, _ = reduced(almanac, method(), 0.93, importance=lambda place: 20.0 ** (place / 2))
    [cell] = cells(almanac, method(), [0.93], "uniform")
    [(_, equal)] = CellReducer(0).reduce_group([cell])
    assert found[0].trial.chosen == EQUAL
    assert [one.edit.allocated for one in found] == [one.edit.allocated for one in equal]


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
def test_any_method_is_allocated_within_the_budget(almanac, name, params):
    found, text = reduced(almanac, method(name, **params), 0.94, layers=(7,))
    budget = Budget.of(text.slots, 0.94)
    assert budget.min_stored <= sum(one.edit.stored_numbers for one in found) <= budget.max_stored
    assert found[0].trial.losses[found[0].trial.chosen] <= found[0].trial.losses.get(EQUAL, np.inf)


class Silent(Reducer):
    """The SVD without curves."""

    name = "silent"

    def prepare(self, weight, ranks, context):
        prepared = method().reducer.prepare(weight, ranks, context)

        class Hidden(Prepared):
            def at_rank(self, rank):
                return prepared.at_rank(rank)

        return Hidden()

    def stored_numbers(self, shape, rank):
        return rank * sum(shape)


def test_without_a_curve_a_few_ranks_are_nearly_as_good_as_all(almanac, monkeypatch):
    monkeypatch.setattr("lrbench.reduction.allocator.candidates", only_the_least)
    known, text = reduced(almanac, method(), 0.93)
    silent, _ = reduced(almanac, Method("silent", Silent(), {}, ""), 0.93, text=text)
    [cell] = cells(almanac, method(), [0.93], "uniform")
    [(_, equal)] = CellReducer(0).reduce_group([cell])
    assert predicted(known, text) <= predicted(silent, text) <= 1.03 * predicted(known, text)
    assert predicted(silent, text) < 0.8 * predicted(equal, text)


def only_the_least(rank_options, budget, method):
    return {LEAST: candidates(rank_options, budget, method)[LEAST]}


def test_what_a_budget_gives_does_not_depend_on_the_others_of_its_group(almanac):
    silent = Method("silent", Silent(), {}, "")
    both = cells(almanac, silent, [0.97, 0.95], layers=(7,))
    together = {
        cell.request.value: [r.edit.allocated for r in outcome]
        for cell, outcome in CellReducer(0, Text(almanac, both[0])).reduce_group(both)
    }
    for keep, ranks in together.items():
        found, _ = reduced(almanac, silent, keep, layers=(7,))
        assert [one.edit.allocated for one in found] == ranks


def test_a_weight_without_moments_fails_the_cell_with_the_reason(almanac):
    class Without(Text):
        def statistics(self, slot, needs):
            raise ReducerError(f"{slot.name}: cannot be calibrated: too little text")

    [cell] = cells(almanac, method(), [0.93])
    with pytest.raises(ReducerError, match="too little text"):
        reduced(almanac, method(), 0.93, text=Without(almanac, cell))


def test_an_allocation_that_fails_is_recorded_with_the_reason(almanac):
    class FailsOnce(Text):
        def held_out_loss(self):
            loss = super().held_out_loss()
            if self.asked == 2:  # the first allocation, after the baseline
                raise MemoryError("too large")
            return loss

    [cell] = cells(almanac, method(), [0.93])
    reductions, _ = reduced(almanac, method(), 0.93, text=FailsOnce(almanac, cell))

    trial = reductions[0].trial
    assert list(trial.failed) == ["equal fractions"]
    assert "too large" in trial.failed["equal fractions"]
    assert trial.chosen in trial.losses
    assert "equal fractions" not in trial.losses


def test_a_model_that_is_spoilt_on_held_out_text_fails_the_cell_and_is_not_tried_further(almanac):
    class Spoils(Text):
        def held_out_loss(self):
            if self.asked == 2:  # the baseline and one allocation were fine
                raise SpoiltModelError("a weight was changed")
            return super().held_out_loss()

    [cell] = cells(almanac, method(), [0.93])
    text = Spoils(almanac, cell)
    with pytest.raises(SpoiltModelError, match="a weight was changed"):
        reduced(almanac, method(), 0.93, text=text)
    assert text.asked == 2


# In a suite

SUITE = """\
name: by-loss
model: {name: almanac, device: cpu}
tasks:
  - {task: almanac_facts_rare, limit: 2}
plugins: [columns.py]
reducers: [svd, id, cr, cur, monarch, kfac-svd, top-columns]
sweep:
  - {mode: together, layers: [7], weights: [attn.o, mlp], rank: {keep_model: 0.96}}
calibration: {name: almanac, samples: 8, length: 128}
"""


def test_every_method_has_an_allocation_by_loss_that_is_no_worse_than_equal_fractions(tmp_path, own_cache):  # noqa: F811
    (tmp_path / "columns.py").write_text(COLUMNS)
    directory = run(write_suite(tmp_path, SUITE), tmp_path / "out").directory
    rows = {row.label: row for row in directory.rows().values() if row.reducer}
    assert len(rows) == 7
    for row in rows.values():
        assert (row.status, row.reason, row.allocation) == ("ok", None, "loss")
        trial = row.allocation_trial
        assert trial.losses[trial.chosen] == min(trial.losses.values()) <= trial.losses[EQUAL]
        assert trial.tokens == HELD_OUT
        assert 0.96 * (1 - TOLERANCE) <= row.keep_model <= 0.96
        assert row.allocate_seconds >= trial.seconds >= 0
        assert row.predicted_loss > 0
    [model] = directory.manifest()["models"]
    assert model["calibration"]["held_out"] == HELD_OUT // 128


def test_loss_is_the_default_where_there_is_text():
    for text, expected in (("calibration={name: almanac}", "loss"), ("calibration=null", "uniform")):
        suite = load_suite("compress", overrides=[text, "reducers=[svd]", "sweep.0.reducers=null",
                                                  "sweep.1.reducers=null", "sweep.0.allocation=null"])  # fmt: skip
        assert suite.sweep[0].shared_by == suite.resolved()["sweep"][0]["allocation"] == expected
        assert suite.sweep[1].shared_by == "error"


def test_held_out_windows_lie_between_the_others_and_leave_them_as_they_are(almanac):
    spec = load_suite("quickstart", overrides=["calibration={name: almanac, samples: 5, length: 64}"]).calibration
    documents = [" ".join(f"w{k} is {k % 7}." for k in range(900))]
    plain = draw(spec, documents, almanac.tokenizer, 512)
    with_part = draw(spec, documents, almanac.tokenizer, 512, held_out=True)
    assert plain.hash == with_part.hash
    assert plain.held_out.numel() == 0
    windows, held_out = with_part.windows.tolist(), with_part.held_out.tolist()
    assert 0 < len(held_out) <= HELD_OUT // 64
    assert len({tuple(window) for window in (*windows, *held_out)}) == len(windows) + len(held_out)
    stream = almanac.tokenizer(documents[0] + "\n\n", add_special_tokens=False)["input_ids"]
    covered = []
    for window in (*windows, *held_out):
        start = next(k for k in range(len(stream)) if stream[k : k + 64] == window)
        covered += range(start, start + 64)
    assert len(covered) == len(set(covered))
    assert len(with_part.passages) == len(windows) + len(held_out)
    spec = spec.model_copy(update={"samples": len(stream) // 64})
    with pytest.raises(SuiteError, match="no 64 more in a row, which 'allocation: loss' holds out"):
        draw(spec, documents, almanac.tokenizer, 512, held_out=True)


def test_an_embedding_cannot_be_allocated_by_loss(almanac):
    embed = [slot for slot in almanac.inventory.slots if slot.about.role == "embed"]
    skip, failure = refusal(method(), tuple(embed), "loss")
    assert failure is None
    assert "cannot be allocated by loss: its inputs are single tokens" in skip
    assert skip.endswith("write 'allocation: uniform'")
