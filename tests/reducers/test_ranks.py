"""Ranks: what a suite asks, and the rank that each reducer gets for it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrbench.errors import ReducerError
from lrbench.reducers.base import Context, Prepared, Reducer, Slot
from lrbench.reducers.factors import LowRank
from lrbench.reducers.ranks import RankRequest, closed_rank, find_rank, ranks_to_prepare

torch.set_num_threads(1)


class _TruncatedSVD(Prepared):
    def __init__(self, weight, exact_errors):
        self.u, self.s, self.v = torch.linalg.svd(weight, full_matrices=False)
        self.exact_errors = exact_errors
        self.built = []

    def at_rank(self, rank):
        self.built.append(rank)
        return LowRank(self.u[:, :rank] * self.s[:rank], self.v[:rank])

    def errors(self, ranks):
        if not self.exact_errors:
            return None
        tails = self.s.double().square().flip(0).cumsum(0).flip(0).sqrt().tolist()
        return [(*tails, 0.0)[rank] for rank in ranks]


class TwoFactors(Reducer):
    """Stores k(m + n) numbers, and says so."""

    name = "two-factors"
    exact_errors: bool = True

    def prepare(self, weight, ranks, context):
        return _TruncatedSVD(weight, self.exact_errors)

    def stored_numbers(self, shape, rank):
        return rank * sum(shape)


class OfBlocks(TwoFactors):
    name = "of-blocks"
    rank_of = "each block"


class Untold(TwoFactors):
    """Stores the same, and does not say."""

    name = "untold"

    def stored_numbers(self, shape, rank):
        return None


class Pivoted(TwoFactors):
    """Stores k(m + n - k), as an interpolative decomposition."""

    name = "pivoted"

    def stored_numbers(self, shape, rank):
        return rank * (sum(shape) - rank)


class Half(TwoFactors):
    """Goes up to half of the columns."""

    name = "half"

    def max_rank(self, shape):
        return min(shape) // 2


class Failing(TwoFactors):
    """Fails whatever is asked."""

    name = "failing"

    def max_rank(self, shape):
        return shape[5]


def slot(shape, name="w"):
    return Slot(name, 0, None, shape)


def found(request, reducer, weight, spectrum=None):
    where = slot(tuple(weight.shape))
    prepared = reducer.prepare(
        weight, ranks_to_prepare([request], reducer, where, spectrum), Context.seeded(where, reducer)
    )
    return find_rank(request, reducer, where, spectrum, weight, prepared), prepared


def matrix(m=12, n=20, seed=0, decay=0.7):
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(m, min(m, n), generator=generator)).Q
    right = torch.linalg.qr(torch.randn(n, min(m, n), generator=generator)).Q
    return left * decay ** torch.arange(min(m, n)) @ right.T


shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(shapes, st.floats(0.01, 1), st.sampled_from([TwoFactors(), Pivoted(), Half()]))
def test_keep_gives_the_largest_rank_that_fits_as_brute_force_does(shape, keep, reducer):
    budget = keep * shape[0] * shape[1] * (1 + 1e-12)
    fitting = [k for k in range(1, reducer.max_rank(shape) + 1) if reducer.stored_numbers(shape, k) <= budget]
    request = RankRequest("keep", keep)
    if fitting:
        assert closed_rank(request, reducer, slot(shape)) == max(fitting)
    else:
        with pytest.raises(ReducerError):
            closed_rank(request, reducer, slot(shape))


def test_keep_gives_the_ranks_of_the_literature_at_4096():
    request = RankRequest("keep", 0.8)
    assert closed_rank(request, TwoFactors(), slot((4096, 4096))) == 1638
    assert closed_rank(request, Pivoted(), slot((4096, 4096))) == 2264


def test_keep_counts_whole_numbers_where_floats_round_down():
    class OneNumber(TwoFactors):
        name = "one-number"

        def stored_numbers(self, shape, rank):
            return rank

    assert 0.29 * 100 < 29
    assert closed_rank(RankRequest("keep", 0.29), OneNumber(), slot((10, 10))) == 10
    assert closed_rank(RankRequest("keep", 0.07), OneNumber(), slot((10, 10))) == 7


@settings(max_examples=25, deadline=None)
@given(st.floats(0.2, 1))
def test_keep_found_by_building_equals_keep_by_formula(keep):
    request, weight = RankRequest("keep", keep), matrix(8, 16)
    assert closed_rank(request, Untold(), slot((8, 16))) is None
    assert found(request, Untold(), weight)[0] == closed_rank(request, TwoFactors(), slot((8, 16)))


@pytest.mark.parametrize("reducer", [TwoFactors(), Untold()], ids=["formula", "building"])
def test_a_keep_below_rank_one_says_the_smallest_and_that_one_works(reducer):
    with pytest.raises(ReducerError) as caught:
        found(RankRequest("keep", 0.01), reducer, matrix(12, 20))
    assert str(caught.value) == (
        f"w: keep 0.01 is too small for rank 1 of {reducer.name}, which stores 32 parameters for 12 x 20; "
        "the smallest possible keep is 0.1334"
    )
    assert found(RankRequest("keep", 0.1334), reducer, matrix(12, 20))[0] == 1


@given(shapes, st.floats(1e-6, 1))
def test_fraction_is_lasers_rank_or_says_the_smallest(shape, fraction):
    rank = int(min(shape) * fraction)
    request = RankRequest("fraction", fraction)
    if rank:
        assert closed_rank(request, TwoFactors(), slot(shape)) == rank
        return
    with pytest.raises(ReducerError, match="is rank 0; the smallest possible fraction is") as caught:
        closed_rank(request, TwoFactors(), slot(shape))
    smallest = float(str(caught.value).rsplit(" ", 1)[1])
    if smallest <= 1:
        assert closed_rank(RankRequest("fraction", smallest), TwoFactors(), slot(shape)) == 1


def test_a_rank_above_the_maximum_is_refused_and_never_clamped():
    assert closed_rank(RankRequest("rank", 12), TwoFactors(), slot((12, 20))) == 12
    with pytest.raises(ReducerError) as caught:
        closed_rank(RankRequest("rank", 13), TwoFactors(), slot((12, 20), "model.layers.3.mlp.down_proj.weight"))
    assert str(caught.value) == (
        "model.layers.3.mlp.down_proj.weight: rank 13 is above 12, the largest rank of two-factors for 12 x 20; "
        "request at most 12, or use `fraction` or `keep`"
    )
    with pytest.raises(ReducerError, match=r"rank 12 \(fraction 1\) is above 6, the largest rank of half"):
        closed_rank(RankRequest("fraction", 1.0), Half(), slot((12, 20)))
    spectrum = torch.linalg.svdvals(matrix(decay=1.0))
    with pytest.raises(ReducerError, match=r"rank 11 \(energy 0.9\) is above 6"):
        closed_rank(RankRequest("energy", 0.9), Half(), slot((12, 20)), spectrum)


@given(st.integers(1, 12), st.floats(0.01, 1))
def test_energy_gives_the_smallest_rank_that_has_the_share(size, share):
    spectrum = torch.rand(size, generator=torch.Generator().manual_seed(size)).sort(descending=True).values
    energies = spectrum.double().square()
    rank = closed_rank(RankRequest("energy", share), TwoFactors(), slot((size, size)), spectrum)
    total = float(energies.sum())
    assert float(energies[:rank].sum()) >= share * total * (1 - 1e-12)
    assert rank == 1 or float(energies[: rank - 1].sum()) < share * total * (1 + 1e-12)


def test_energy_of_a_zero_matrix_is_rank_one_and_of_all_energy_the_rank_of_the_matrix():
    request = RankRequest("energy", 1.0)
    assert closed_rank(request, TwoFactors(), slot((5, 5)), torch.zeros(5)) == 1
    assert closed_rank(request, TwoFactors(), slot((3, 3)), torch.tensor([2.0, 1.0, 0.0])) == 2


def test_energy_finds_the_singular_values_itself_where_none_are_given():
    weight = matrix()
    spectrum = torch.linalg.svdvals(weight.double())
    request = RankRequest("energy", 0.9)
    assert closed_rank(request, TwoFactors(), slot((12, 20))) is None
    assert found(request, TwoFactors(), weight)[0] == found(request, TwoFactors(), weight, spectrum)[0]


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 0.99), st.booleans())
def test_error_gives_the_smallest_rank_within_it_measured_or_told(error, exact_errors):
    weight = matrix()
    rank, prepared = found(RankRequest("error", error), TwoFactors(exact_errors=exact_errors), weight)

    def relative(k):
        return float((weight - prepared.at_rank(k).dense()).norm() / weight.norm())

    assert relative(rank) <= error + 1e-5
    assert rank == 1 or relative(rank - 1) > error - 1e-5


def test_a_told_error_builds_no_factors_and_a_measured_one_few():
    assert found(RankRequest("error", 0.1), TwoFactors(), matrix(64, 64, decay=0.9))[1].built == []
    built = found(RankRequest("error", 0.1), TwoFactors(exact_errors=False), matrix(64, 64, decay=0.9))[1].built
    assert len(built) <= 1 + math.ceil(math.log2(64))


def test_where_the_error_is_promised_never_to_grow_it_is_asked_of_few_ranks():
    class Falling(TwoFactors):
        name = "falling"
        promises = frozenset({"monotone"})

    asked = []
    W = torch.randn(60, 80, generator=torch.Generator().manual_seed(0))
    reducer, slot = Falling(), Slot("w", None, None, (60, 80))
    prepared = reducer.prepare(W, [60], Context.seeded(slot, reducer))
    tell = prepared.errors
    prepared.errors = lambda ranks: asked.append(list(ranks)) or tell(ranks)
    plain = TwoFactors()
    for value in (0.9, 0.5, 0.1):
        request = RankRequest("error", value)
        whole = find_rank(request, plain, slot, None, W, plain.prepare(W, [60], Context.seeded(slot, plain)))
        asked.clear()
        assert find_rank(request, reducer, slot, None, W, prepared) == whole
        assert sum(map(len, asked)) <= 8
    assert prepared.built == []


def test_a_wrong_number_of_errors_is_refused():
    class Mumbles(TwoFactors):
        name = "mumbles"
        promises = frozenset({"monotone"})

    W = torch.eye(4)
    reducer, slot = Mumbles(), Slot("w", None, None, (4, 4))
    prepared = reducer.prepare(W, [4], Context.seeded(slot, reducer))
    prepared.errors = lambda ranks: [0.0, 0.0]
    with pytest.raises(ReducerError, match="w: mumbles returned 2 errors for 1 ranks"):
        find_rank(RankRequest("error", 0.5), reducer, slot, None, W, prepared)


@pytest.mark.parametrize("exact_errors", [True, False])
def test_error_zero_means_up_to_rounding(exact_errors):
    rank, _ = found(RankRequest("error", 0.0), TwoFactors(exact_errors=exact_errors), matrix(decay=0.9))
    assert rank == 12


@pytest.mark.parametrize("exact_errors", [True, False])
def test_an_error_that_is_not_reached_says_what_is(exact_errors):
    weight = matrix(decay=1.0)
    with pytest.raises(ReducerError) as caught:
        found(RankRequest("error", 0.1), Half(exact_errors=exact_errors), weight)
    assert str(caught.value) == "w: half does not reach error 0.1; its error at the largest rank, 6, is 0.7071"


@pytest.mark.parametrize("exact_errors", [True, False])
def test_error_of_a_zero_matrix_is_rank_one(exact_errors):
    assert found(RankRequest("error", 0.1), TwoFactors(exact_errors=exact_errors), torch.zeros(4, 6))[0] == 1


def test_prepare_is_told_every_rank_and_the_largest_where_one_is_searched():
    requests = [RankRequest("rank", 3), RankRequest("keep", 0.5), RankRequest("rank", 3), RankRequest("rank", 99)]
    assert ranks_to_prepare(requests, TwoFactors(), slot((12, 20))) == [3]
    assert ranks_to_prepare([*requests, RankRequest("error", 0.1)], TwoFactors(), slot((12, 20))) == [3, 12]
    assert ranks_to_prepare([RankRequest("keep", 0.5)], Untold(), slot((12, 20))) == [12]
    assert ranks_to_prepare([RankRequest("rank", 99)], TwoFactors(), slot((12, 20))) == [1]


def test_a_reducer_that_raises_on_a_shape_is_named():
    with pytest.raises(ReducerError, match=r"^w: failing: max_rank\(\) failed: IndexError: tuple index out of range$"):
        closed_rank(RankRequest("rank", 1), Failing(), slot((2, 2)))


def test_a_request_is_recorded_as_it_was_asked():
    assert RankRequest("keep", 0.5).requested == {"keep": 0.5}


@pytest.mark.parametrize("request_", [RankRequest("fraction", 0.5), RankRequest("energy", 0.5)])
def test_a_rank_of_the_weight_is_not_asked_of_a_method_that_counts_other_ranks(request_):
    slot = Slot("w", 0, "mlp.up", (12, 20))
    with pytest.raises(ReducerError, match="but the rank of of-blocks is that of each block; use `keep`, `error`"):
        closed_rank(request_, OfBlocks(), slot, torch.ones(12))
    assert closed_rank(RankRequest("keep", 0.5), OfBlocks(), slot) == 3
    assert closed_rank(RankRequest("rank", 4), OfBlocks(), slot) == 4


def test_a_remedy_is_one_that_the_method_can_take():
    with pytest.raises(ReducerError, match=r"request at most 12, or use `keep` or `error`$"):
        closed_rank(RankRequest("rank", 13), OfBlocks(), slot((12, 20)))
    with pytest.raises(ReducerError, match=r"request at most 12, or use `fraction` or `keep`$"):
        closed_rank(RankRequest("rank", 13), TwoFactors(), slot((12, 20)))


def test_no_keep_is_proposed_where_rank_one_stores_more_than_the_weight():
    with pytest.raises(ReducerError) as caught:
        closed_rank(RankRequest("keep", 0.5), TwoFactors(), slot((1, 6)))
    assert str(caught.value) == (
        "w: two-factors stores 7 parameters for 1 x 6 at rank 1, more than the 6 of the weight itself: at no rank is "
        "it smaller; leave it out for weights of this shape"
    )
    with pytest.raises(ReducerError, match=r"the smallest possible keep is 1$"):  # that of 2 x 2 stores as many
        closed_rank(RankRequest("keep", 0.5), TwoFactors(), slot((2, 2)))
