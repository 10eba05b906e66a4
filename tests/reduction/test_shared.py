"""What reducers of one weight share: computed once, charged to each that asks, and never written to."""

import time

import pytest
import torch

import lrbench
from lrbench import linalg
from lrbench.reducers.ranks import RankRequest
from lrbench.reducers.registry import Registry
from lrbench.reducers.shared_results import SharedCost, SharedResults
from lrbench.reduction.cell_reducer import CellReducer
from lrbench.reduction.plan import Cell, Method


def slow_double(W):
    time.sleep(0.3)
    return 2 * W


def test_a_result_is_made_once_for_the_same_objects_and_again_for_others():
    shared, W = SharedResults(), torch.ones(3)
    calls = []

    def make(*arguments):
        calls.append(arguments)
        return torch.zeros(2)

    first = shared.once(make, W, 1)
    assert shared.once(make, W, 1) is first
    shared.once(make, W, 2)
    shared.once(make, W, 1.0)
    shared.once(make, W.clone(), 1)  # equal, but not the same
    shared.once(make, W, True)
    shared.once(make, W, None)
    assert len(calls) == 6


def test_whoever_asks_is_charged_once_what_the_result_took_and_only_its_maker_spent_it():
    shared, W = SharedResults(), torch.ones(3)
    maker, finder = SharedCost(), SharedCost()
    with shared.counted_in(maker):
        shared.once(slow_double, W)
        shared.once(slow_double, W)
    with shared.counted_in(finder):
        shared.once(slow_double, W)
    assert 0.3 <= maker.charged == maker.spent == finder.charged
    assert finder.spent == 0
    rank = finder.copy()
    with shared.counted_in(rank):
        shared.once(slow_double, W)
    assert rank.charged == finder.charged
    shared.once(slow_double, W)  # on no bill
    assert finder.charged == maker.charged


def test_a_failed_result_is_not_kept():
    shared, outcomes = SharedResults(), iter([ZeroDivisionError, None])

    def make():
        if error := next(outcomes):
            raise error
        return "made"

    with pytest.raises(ZeroDivisionError):
        shared.once(make)
    assert shared.once(make) == "made"


@pytest.mark.parametrize("write", [lambda r: r.add_(1), lambda r: r[:1].zero_(), lambda r: r.T.mul_(2)])
@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: (1, [r]), lambda r: {"a": r}, lambda r: Held(r)])
def test_writing_to_a_result_is_found_out_wherever_it_is_held(write, wrap):
    shared, inner = SharedResults(), torch.ones(3, 3)

    def make():
        return wrap(inner)

    shared.once(make)
    assert shared.modified() is None
    with torch.inference_mode():
        shared.once(linalg.gram, torch.ones(2, 2))
    write(inner)
    assert shared.modified() == "make"


class Held:
    def __init__(self, tensor):
        self.tensor, self.me = tensor, self


def test_memory_counts_every_storage_once():
    shared, W = SharedResults(), torch.ones(100, dtype=torch.float64)
    shared.once(lambda A: (A, A[:10]), W)
    assert shared.nbytes == 800


# In a run


class Writes(lrbench.Reducer):
    """Writes to the Gram matrix that others share."""

    name = "writes-to-shared"

    def reduce(self, weight, rank, context):
        context.once(linalg.short_gram, weight).zero_()
        return lrbench.LowRank(weight[:, :rank].contiguous(), weight[:rank].contiguous())


class Sleeps(lrbench.Reducer):
    """Shares what takes long."""

    name = "sleeps"
    label: str = "first"

    def prepare(self, weight, ranks, context):
        context.once(slow_double, weight)
        return Slept(weight, context)

    def stored_numbers(self, shape, rank):
        return shape[0] * rank


class Slept(lrbench.Prepared):
    def __init__(self, weight, context):
        self.weight, self.context = weight, context

    def at_rank(self, rank):
        self.context.once(slow_double, self.weight)
        J = torch.arange(rank)
        return lrbench.ColumnSubset(self.weight[:, J], J, in_features=self.weight.shape[1])

    def chosen(self, rank):
        return {"algorithm": "small" if rank < 3 else "large"}


def slots(count=1, shape=(12, 20)):
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        linear = torch.nn.Linear(shape[1], shape[0], bias=False)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(shape, generator=generator))
        about = lrbench.Slot(f"layers.{i}.weight", i, "mlp.up", shape)
        found.append(slot_of(linear, about))
    return found


def slot_of(linear, about):
    class Plain:
        """A weight on its own, as `WeightSlot` gives it."""

        name, users, size = about.name, 1, about.shape[0] * about.shape[1]

        def __init__(self):
            self.about = about

        def tensor(self):
            return linear.weight

        def read(self):
            return linear.weight.detach()

    return Plain()


def cells(reducer, of, ranks=(2, 4), label=None):
    method = Method(label or reducer.name, reducer, {}, "hash")
    return [Cell(method, "together", tuple(of), RankRequest("rank", k), 0) for k in ranks]


def seconds(outcome):
    assert isinstance(outcome, list), outcome
    return [reduction.seconds for reduction in outcome]


def test_the_second_method_is_charged_for_what_the_first_has_made_and_no_rank_twice():
    reductions, of = CellReducer(0), slots()
    started = time.perf_counter()
    times = [
        seconds(outcome)[0]
        for label in ("first", "second")
        for _, outcome in reductions.reduce_group(cells(Sleeps(label=label), of, label=label))
    ]
    elapsed = time.perf_counter() - started
    assert all(0.3 <= t < 0.58 for t in times), times
    assert elapsed < sum(times)  # it was really done once (and once for each warm-up)


def test_a_run_makes_one_gram_and_one_set_of_eigenvectors_a_slot(monkeypatch):
    made = []
    for name in ("symmetric_product", "eigenvectors"):
        real = getattr(linalg.lapack, name)
        monkeypatch.setattr(
            linalg.lapack, name, lambda *a, real=real, name=name: made.append((name, len(a[0]))) or real(*a)
        )
    reductions, of = CellReducer(0), slots(2, (80, 100))
    registry = Registry.load()
    for name in ("svd", "id", "cur", "svd"):
        params = {"selection": "deim"} if name == "cur" else {}
        for _, outcome in reductions.reduce_group(cells(registry.build(name, params), of, label=f"{name}-{len(made)}")):
            seconds(outcome)
    assert made.count(("symmetric_product", 80)) == 2  # the corners that warm up are smaller
    assert made.count(("eigenvectors", 80)) == 2


def test_writing_to_a_shared_result_fails_the_method_and_spares_the_next():
    reductions, of = CellReducer(0), slots()
    outcomes = [outcome for _, outcome in reductions.reduce_group(cells(Writes(), of))]
    assert all("writes to the shared result short_gram" in str(outcome) for outcome in outcomes)
    fresh = [o for _, o in CellReducer(0).reduce_group(cells(Registry.load().build("svd", {}), of))]
    after = [o for _, o in reductions.reduce_group(cells(Registry.load().build("svd", {}), of))]
    for one, other in zip(fresh, after, strict=True):
        assert torch.equal(one[0].matrix(), other[0].matrix())


def test_what_is_kept_of_slots_is_bounded_and_the_latest(monkeypatch):
    reductions, of = CellReducer(0), slots(6, (64, 64))
    svd = Registry.load().build("svd", {})
    one = 64 * 64 * 4 + 2 * 64 * 64 * 8 + 64 * 8  # the copy, the Gram, its vectors and values
    monkeypatch.setattr("lrbench.reduction.cell_reducer._free_memory", lambda device: 8 * 3 * one)
    monkeypatch.setattr("lrbench.reduction.cell_reducer._CACHE_FRACTION", 1 / 8)
    for _, outcome in reductions.reduce_group(cells(svd, of, ranks=(2,))):
        seconds(outcome)
    assert list(reductions._copies) == [slot.name for slot in of[-3:]]
    monkeypatch.setattr("lrbench.reduction.cell_reducer._free_memory", lambda device: 0)
    for _, outcome in reductions.reduce_group(cells(svd, of[:1], ranks=(2,))):
        assert seconds(outcome)  # with no room at all it works all the same


def test_what_a_method_chose_stands_in_the_edit_and_values_that_are_not_plain_are_refused():
    [(_, small), (_, large)] = CellReducer(0).reduce_group(cells(Sleeps(), slots()))
    assert [small[0].edit.chosen, large[0].edit.chosen] == [{"algorithm": "small"}, {"algorithm": "large"}]

    class Odd(Sleeps):
        name = "odd"

        def prepare(self, weight, ranks, context):
            prepared = super().prepare(weight, ranks, context)
            prepared.chosen = lambda rank: {"algorithm": weight}
            return prepared

    [(_, refused), _] = CellReducer(0).reduce_group(cells(Odd(), slots()))
    assert "chosen() returned 'algorithm'" in str(refused)


def test_a_row_merges_what_was_chosen_for_its_weights():
    from lrbench.run.model_run import _chosen

    outcome = next(CellReducer(0).reduce_group(cells(Sleeps(), slots(2))))[1]
    edits = [reduction.edit for reduction in outcome]
    assert _chosen(edits) == {"algorithm": "small"}
    other = edits[0].model_copy(update={"chosen": {"algorithm": "large", "columns": 3}})
    assert _chosen([*edits, other]) == {"algorithm": "large, small", "columns": 3}
