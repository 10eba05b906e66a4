"""The conformance checks: every kind of broken reducer is caught, by the check that is about it."""

import itertools
import random

import numpy
import pytest
import torch

import lrbench
from lrbench import linalg
from lrbench.testing import CheckResult, check_reducer


class Sound(lrbench.Reducer):
    """Truncated SVD by torch; each broken reducer below differs from it in one thing."""

    name = "sound"
    promises = frozenset({"exact", "monotone", "optimal", "idempotent", "homogeneous"})

    def reduce(self, weight, rank, context):
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
        return lrbench.LowRank(U[:, :rank] * S[:rank], Vh[:rank])

    def stored_numbers(self, shape, rank):
        return rank * sum(shape)


class WrongShape(Sound):
    def reduce(self, weight, rank, context):
        factors = super().reduce(weight, rank, context)
        return lrbench.LowRank(factors.right.T, factors.left.T)


class NotANumber(Sound):
    def reduce(self, weight, rank, context):
        factors = super().reduce(weight, rank, context)
        return lrbench.LowRank(factors.left / factors.left.norm(dim=0).clamp(max=0), factors.right)


class DividesByZero(Sound):
    promises = frozenset()

    def reduce(self, weight, rank, context):
        norms = weight.norm(dim=0)
        factors = super().reduce(weight / norms, rank, context)
        return lrbench.LowRank(factors.left, factors.right * norms)


class LiesAboutSize(Sound):
    def stored_numbers(self, shape, rank):
        return rank * sum(shape) // 2


class RankTooHigh(Sound):
    def reduce(self, weight, rank, context):
        return super().reduce(weight, min(rank + 1, *weight.shape), context)


class Promotes(Sound):
    def reduce(self, weight, rank, context):
        return super().reduce(weight.double(), rank, context)


class ReturnsATensor(Sound):
    def reduce(self, weight, rank, context):
        return super().reduce(weight, rank, context).dense()


class Raises(Sound):
    def reduce(self, weight, rank, context):
        raise RuntimeError("no luck\ntoday")


class ReseedsTorch(Sound):
    def reduce(self, weight, rank, context):
        torch.manual_seed(0)
        torch.randn(1)
        return super().reduce(weight, rank, context)


class DrawsFromNumpy(Sound):
    def reduce(self, weight, rank, context):
        numpy.random.rand()
        return super().reduce(weight, rank, context)


class DrawsFromPython(Sound):
    def reduce(self, weight, rank, context):
        random.random()
        return super().reduce(weight, rank, context)


class WritesToTheWeight(Sound):
    def reduce(self, weight, rank, context):
        factors = super().reduce(weight, rank, context)
        weight.sub_(factors.dense())
        return factors


class WritesAndPutsBack(Sound):
    def reduce(self, weight, rank, context):
        weight.mul_(2).div_(2)
        return super().reduce(weight, rank, context)


class Unseeded(Sound):
    promises = frozenset()
    own = torch.Generator()

    def reduce(self, weight, rank, context):
        noise = torch.randn(weight.shape, generator=Unseeded.own, dtype=weight.dtype)
        return super().reduce(weight + 1e-3 * noise, rank, context)


class ReadsMemoryOrder(Sound):
    promises = frozenset()

    def reduce(self, weight, rank, context):
        if not weight.is_contiguous():
            weight = weight.flip(0)
        return super().reduce(weight, rank, context)


class SharedRanks(Sound):
    """What rank 1 gives depends on the largest rank announced."""

    promises = frozenset()

    def prepare(self, weight, ranks, context):
        sound, largest = super(), max(ranks)

        class Shared(lrbench.Prepared):
            def at_rank(self, rank):
                factors = sound.reduce(weight, rank, context)
                return lrbench.LowRank(factors.left * (1 - 0.01 * largest), factors.right)

        return Shared()

    def reduce(self, weight, rank, context):
        return self.prepare(weight, [rank], context).at_rank(rank)


class ReducesOtherwise(Sound):
    promises = frozenset()

    def prepare(self, weight, ranks, context):
        sound = super()

        class Shifted(lrbench.Prepared):
            def at_rank(self, rank):
                return sound.reduce(weight.flip(0), rank, context)

        return Shifted()


class WrongErrors(Sound):
    def prepare(self, weight, ranks, context):
        reducer = self

        class Boasting(lrbench.Prepared):
            def at_rank(self, rank):
                return reducer.reduce(weight, rank, context)

            def errors(self, ranks):
                return [0.9 * float(torch.linalg.svdvals(weight)[rank:].square().sum().sqrt()) for rank in ranks]

        return Boasting()


class WrongLosses(Sound):
    def prepare(self, weight, ranks, context):
        reducer = self

        class Modest(lrbench.Prepared):
            def at_rank(self, rank):
                return reducer.reduce(weight, rank, context)

            def predicted_losses(self, ranks, second_moment, output_gradient_moment):
                changes = [weight - self.at_rank(rank).dense() for rank in ranks]
                return [1.1 * linalg.predicted_loss(E, second_moment, output_gradient_moment) for E in changes]

        return Modest()


class Inexact(Sound):
    promises = frozenset({"exact"})

    def reduce(self, weight, rank, context):
        factors = super().reduce(weight, rank, context)
        return lrbench.LowRank(0.999 * factors.left, factors.right)


class Suboptimal(Inexact):
    promises = frozenset({"optimal"})


class NotMonotone(Sound):
    promises = frozenset({"monotone"})

    def reduce(self, weight, rank, context):
        return (
            super().reduce(weight, max(1, rank - rank % 3), context) if rank % 2 else super().reduce(weight, 1, context)
        )

    def stored_numbers(self, shape, rank):
        return None


class NotColumns(Sound):
    promises = frozenset({"columns"})


class MixedColumns(Sound):
    promises = frozenset({"columns"})

    def reduce(self, weight, rank, context):
        J = torch.arange(rank)
        return lrbench.ColumnSubset(weight[:, J] + weight.mean(dim=1, keepdim=True), J, in_features=weight.shape[1])

    def stored_numbers(self, shape, rank):
        return rank * shape[0]


class Shrinks(Inexact):
    promises = frozenset({"idempotent"})


class Thresholds(Sound):
    promises = frozenset({"homogeneous"})

    def reduce(self, weight, rank, context):
        return super().reduce(weight.clamp(-1, 1), rank, context)


class Interpolates(lrbench.Reducer):
    """Row interpolation on the rows of largest norm; each broken reducer below differs from it in one thing."""

    name = "interpolates"
    promises = frozenset({"rows", "nested", "refit", "permutes"})

    def choose(self, weight, rank):
        return weight.norm(dim=1).argsort(descending=True, stable=True)[:rank]

    def skeleton(self, weight, rows):
        return weight[rows]

    def fit(self, S, others):
        return (others.double() @ torch.linalg.pinv(S.double())).to(S.dtype)

    def reduce(self, weight, rank, context):
        rows = self.choose(weight, rank)
        others = torch.ones(len(weight), dtype=torch.bool).index_fill(0, rows, False)
        S = self.skeleton(weight, rows)
        return lrbench.Interpolative(S, rows, self.fit(S, weight[others]), "rows")


class NotRows(Sound):
    promises = frozenset({"rows"})


class RoundedRows(Interpolates):
    promises = frozenset({"rows"})

    def skeleton(self, weight, rows):
        return weight[rows] * (1 + 1e-6)


class ChoosesAfresh(Interpolates):
    promises = frozenset({"nested"})

    def choose(self, weight, rank):
        return super().choose(weight, len(weight)).roll(-rank)[:rank]


class TurnsWithTheRank(Sound):
    promises = frozenset({"nested"})

    def reduce(self, weight, rank, context):
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
        kept = torch.arange(rank) if rank % 2 else torch.arange(len(S) - rank, len(S))
        return lrbench.LowRank(U[:, kept] * S[kept], Vh[kept])


class CarelessFit(Interpolates):
    promises = frozenset({"refit"})

    def fit(self, S, others):
        return 0.9 * super().fit(S, others)


class NoSkeleton(Sound):
    promises = frozenset({"refit"})


class OneSided(Sound):
    promises = frozenset({"transposes"})

    def reduce(self, weight, rank, context):
        Q = torch.linalg.qr(weight[:, :rank]).Q
        return lrbench.LowRank(Q, Q.T @ weight)


class FirstColumns(OneSided):
    promises = frozenset({"permutes"})


class WritesToShared(Sound):
    def prepare(self, weight, ranks, context):
        context.once(linalg.short_gram, weight).add_(1)
        return super().prepare(weight, ranks, context)


class TrustsTheFirst(Sound):
    """Takes a shared result for its own, which depends on the rank."""

    promises = frozenset()

    def prepare(self, weight, ranks, context):
        sound, scale = super(), context.once(lucky, weight)

        class Scaled(lrbench.Prepared):
            def at_rank(self, rank):
                factors = sound.reduce(weight, rank, context)
                return lrbench.LowRank(factors.left * scale, factors.right)

        return Scaled()

    def reduce(self, weight, rank, context):
        return self.prepare(weight, [rank], context).at_rank(rank)


COUNT = itertools.count()


def lucky(weight):
    return 1.0 + (next(COUNT) % 7)


class Calibrated(lrbench.Reducer):
    """The optimum of the output error; each broken reducer below differs from it in one thing."""

    name = "calibrated"
    needs = frozenset({"second_moment"})
    promises = frozenset({"output-optimal", "exact"})

    def statistic(self, context):
        return context.statistics["second_moment"]

    def reduce(self, weight, rank, context):
        values, vectors = torch.linalg.eigh(self.statistic(context))
        L = vectors * values.clamp(min=0).sqrt()
        U = torch.linalg.svd(weight.double() @ L, full_matrices=False)[0][:, :rank].to(weight.dtype)
        return lrbench.LowRank(U, U.T @ weight)


class Deaf(Calibrated):
    promises = frozenset()

    def statistic(self, context):
        return torch.eye(len(super().statistic(context)), dtype=torch.float64)


class HalfDeaf(Calibrated):
    promises = frozenset({"output-optimal"})

    def statistic(self, context):
        return super().statistic(context).diagonal().diag()


class HearsTheVolume(Calibrated):
    promises = frozenset()

    def statistic(self, context):
        H = super().statistic(context)
        return H + torch.eye(len(H), dtype=torch.float64)


class Tampers(Calibrated):
    promises = frozenset()

    def statistic(self, context):
        return super().statistic(context).add_(0)


class Inverts(Calibrated):
    promises = frozenset()

    def statistic(self, context):
        H = super().statistic(context)
        torch.linalg.cholesky(H)
        return H


class RefusesWithReason(Calibrated):
    def statistic(self, context):
        H = super().statistic(context)
        if torch.linalg.cholesky_ex(H).info:
            raise ValueError("the second moment is singular; set a damping above 0")
        return H


FORM = "returns finite factors"
CASES = [
    (WrongShape, FORM, "of shape"),
    (NotANumber, FORM, "NaN or Inf in left"),
    (DividesByZero, "copes with", "zeros"),
    (LiesAboutSize, FORM, "stored_numbers says"),
    (RankTooHigh, FORM, "was requested"),
    (Promotes, FORM, "for a weight of torch.float32"),
    (ReturnsATensor, FORM, "return lrbench factors"),
    (Raises, FORM, "RuntimeError: no luck today"),
    (ReseedsTorch, "leaves global random state", "use context.generator"),
    (DrawsFromNumpy, "leaves global random state", "use context.generator"),
    (DrawsFromPython, "leaves global random state", "use context.generator"),
    (WritesToTheWeight, "does not write to the weight", "work on a copy"),
    (WritesAndPutsBack, "does not write to the weight", "written to"),
    (Unseeded, "same bits", "two runs differ"),
    (ReadsMemoryOrder, "not contiguous", "differ by"),
    (SharedRanks, "whichever other ranks", "alone and among"),
    (ReducesOtherwise, "by reduce as by prepare", "differ by"),
    (WrongErrors, "has correct errors()", "errors() states"),
    (WrongLosses, "has correct predicted_losses()", "predicted_losses() states"),
    (Inexact, "to be exact", "differ by"),
    (Suboptimal, "the Eckart-Young optimum, and attains", "the optimum is"),
    (NotMonotone, "does not increase", "the error grows"),
    (NotColumns, "made of columns", "LowRank does not hold columns"),
    (MixedColumns, "made of columns", "scaled columns"),
    (Shrinks, "reducing again", "differ by"),
    (Thresholds, "a multiple of the weight", "differ by"),
    (NotRows, "made of rows", "LowRank does not hold rows"),
    (RoundedRows, "made of rows", "not those of W, bit by bit"),
    (ChoosesAfresh, "a larger rank extends a smaller one", "not a prefix"),
    (TurnsWithTheRank, "a larger rank extends a smaller one", "outside the next rank"),
    (CarelessFit, "least-squares", "in the residual"),
    (NoSkeleton, "least-squares", "no skeleton"),
    (OneSided, "the transpose", "differ by"),
    (FirstColumns, "permutes the result", "differ by"),
    (WritesToShared, "takes shared results", "the result of short_gram was written to"),
    (TrustsTheFirst, "takes shared results", "from shared results"),
    (Deaf, "another result for correlated", "does not depend on second_moment"),
    (HearsTheVolume, "another result for correlated", "statistics times 16"),
    (HalfDeaf, "smallest output error", "the optimum is"),
    (Tampers, "does not write to the statistics", "second_moment was written to"),
    (Inverts, "always zero", "LinAlgError"),
]


@pytest.mark.parametrize(("reducer", "check", "detail"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_broken_reducer_fails_the_check_that_is_about_it(reducer, check, detail):
    failed = [result for result in check_reducer(reducer) if check in result.name]
    assert len(failed) == 1
    assert not failed[0].passed
    assert detail in failed[0].detail
    assert "\n" not in failed[0].detail


@pytest.mark.parametrize("reducer", [Interpolates, Calibrated, RefusesWithReason])
def test_what_the_broken_reducers_differ_from_is_sound(reducer):
    assert [(r.name, r.detail) for r in check_reducer(reducer) if not r.passed] == []


def test_where_the_factors_are_wrong_only_that_is_reported():
    results = check_reducer(WrongShape)
    assert sum(not result.passed for result in results) == 1
    assert {result.skipped for result in results[2:]} == {f"{results[1].name!r} failed"}


@pytest.mark.parametrize(
    ("declared", "detail"),
    [
        ({"name": "Not This"}, "lower case"),
        ({"name": ""}, "lower case"),
        ({"promises": frozenset({"fast"})}, "promises holds ['fast']"),
        ({"needs": frozenset({"luck"})}, "needs holds ['luck']"),
        ({"max_rank": lambda self, shape: min(shape) // 2}, "max_rank gives 0"),
        ({"promises": None}, "TypeError"),
        ({"needs": [["luck"]]}, "TypeError"),
        ({"name": None}, "TypeError"),
    ],
)
def test_a_reducer_that_is_declared_wrongly_is_told_so(declared, detail):
    results = check_reducer(type("Declared", (Sound,), declared))
    assert "is declared well" in results[0].name
    assert detail in results[0].detail


def test_checking_leaves_global_random_state_as_it_was():
    before = torch.get_rng_state(), random.getstate(), repr(numpy.random.get_state(legacy=False))
    check_reducer(ReseedsTorch)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), repr(numpy.random.get_state(legacy=False))) == before[1:]


def test_a_sound_reducer_passes_and_says_what_was_skipped_and_why():
    results = check_reducer(Sound)
    assert [r for r in results if not r.passed] == []
    assert [(r.name, r.skipped) for r in results if r.skipped] == [
        ("has correct errors() where it has any", "errors() is not given; errors are measured on the factors"),
        (
            "has correct predicted_losses() where it has any",
            "predicted_losses() is not given; predicted losses are measured on the factors",
        ),
    ]


def test_promises_that_were_not_made_are_not_checked():
    class Modest(Sound):
        promises = frozenset()

    assert len(check_reducer(Sound)) == len(check_reducer(Modest)) + 5


def test_the_fifteen_lines_of_the_documentation_pass():
    class TopColumns(lrbench.Reducer):
        """Keep the k columns of W with the largest norm."""

        name = "top-columns"

        def reduce(self, weight, rank, context):
            columns = weight.norm(dim=0).topk(rank).indices
            return lrbench.ColumnSubset(weight[:, columns], columns, in_features=weight.shape[1])

    assert all(result.passed for result in check_reducer(TopColumns))


def test_a_reducer_that_cannot_be_made_or_does_nothing_is_a_failed_check_not_a_crash():
    class Unmade(Sound):
        def __post_init__(self):
            raise ValueError("rank is out of luck")

    class Empty(lrbench.Reducer):
        name = "empty"

    assert check_reducer(Unmade) == [
        CheckResult("can be made with its default parameters", False, "ValueError: rank is out of luck")
    ]
    failed = [result for result in check_reducer(Empty) if not result.passed]
    assert [result.detail for result in failed] == ["NotImplementedError: Empty overrides neither reduce nor prepare"]


@pytest.mark.parametrize("method", ["dense", "apply", "check", "tensors", "shape", "rank", "stored_numbers"])
@pytest.mark.parametrize("error", [ZeroDivisionError, StopIteration, AttributeError, LookupError])
def test_factors_of_a_plugins_own_that_raise_are_a_failed_check_not_a_crash(method, error):
    def out_of_luck(self, *args):
        raise error("out of luck")

    given = getattr(lrbench.LowRank, method)
    body = property(out_of_luck) if isinstance(given, property) else out_of_luck
    Unlucky = type("Unlucky", (lrbench.LowRank,), {method: body})

    class Makes(Sound):
        def reduce(self, weight, rank, context):
            factors = super().reduce(weight, rank, context)
            return Unlucky(factors.left, factors.right)

    failed = [result for result in check_reducer(Makes) if not result.passed]
    assert failed
    assert all(f"{error.__name__}: out of luck" in result.detail for result in failed)


def test_a_dense_matrix_of_another_shape_is_not_compared_by_broadcasting():
    class Row(lrbench.LowRank):
        def dense(self):
            return super().dense()[:1]

    class Makes(Sound):
        def reduce(self, weight, rank, context):
            factors = super().reduce(weight, rank, context)
            return Row(factors.left, factors.right)

    [applied] = [result for result in check_reducer(Makes) if "apply to a token" in result.name]
    assert not applied.passed
    assert "is not" in applied.detail


def test_a_result_better_than_the_optimum_is_found_out():
    class Cheats(Sound):
        promises = frozenset()

        def reduce(self, weight, rank, context):
            # Claims rank 1 but stores W, flattened into factors of the wrong rank.
            return lrbench.LowRank(weight, torch.eye(weight.shape[1], dtype=weight.dtype))

    assert any("was requested" in result.detail for result in check_reducer(Cheats))


def test_calibrated_reducers_are_given_the_statistics_they_need():
    class Whitened(Sound):
        needs = frozenset({"second_moment"})

        def reduce(self, weight, rank, context):
            assert context.statistics["second_moment"].shape == (weight.shape[1], weight.shape[1])
            return super().reduce(weight, rank, context)

    failed = [result.name for result in check_reducer(Whitened) if not result.passed]
    assert failed == ["gives another result for correlated inputs than for white ones, whatever the inputs' scale"]
