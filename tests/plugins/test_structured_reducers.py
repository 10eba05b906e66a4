"""Monarch, clustered SVD, the controls, and pivoted storage: contracts, oracles, and what they are for."""

import math
from itertools import pairwise

import pytest
import torch
from lrbench.plugins import bottom, clustered_svd, monarch, random_subspace, rsvd, svd

import lrbench
from lrbench.linalg import DOMINANCE, block_errors, k_subspaces, optimal_errors, skeleton_rows
from lrbench.reducers.low_rank import pivoted
from lrbench.reducers.output_check import validate_factors
from lrbench.reducers.parameters import ParameterError, build
from lrbench.reducers.ranks import RankRequest, closed_rank
from lrbench.reducers.registry import Registry
from lrbench.testing import check_reducer

SVD, RandomizedSVD, Monarch = svd.SVD, rsvd.RandomizedSVD, monarch.Monarch
ClusteredSVD, RandomSubspace, Bottom = clustered_svd.ClusteredSVD, random_subspace.RandomSubspace, bottom.Bottom

LOW_RANK = [SVD, RandomizedSVD, RandomSubspace, Bottom]
#: Those that calibrate, too.
STORING = [each for each in Registry.load().reducers.values() if issubclass(each, lrbench.LowRankReducer)]
ALL = [
    *(reducer(store="pivoted") for reducer in STORING),
    RandomizedSVD(store="pivoted", oversample=0, power_iterations=0),
    RandomSubspace(),
    Bottom(),
    Monarch(),
    Monarch(blocks=3),
    Monarch(blocks=(1, 4)),
    ClusteredSVD(),
    ClusteredSVD(clusters=2, ranks="equal", restarts=1),
    ClusteredSVD(clusters=1),
]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(m, n, seed=0, power=0.6):
    """Slow decay, with a few heavy rows and columns."""
    s = min(m, n)
    U, V = torch.linalg.qr(normal(m, s, seed=seed)).Q, torch.linalg.qr(normal(n, s, seed=seed + 1)).Q
    W = (U * torch.arange(1, s + 1).double() ** -power) @ V.T
    W[1] *= 4
    W[:, 2] *= 6
    return W


def prepared(reducer, W, ranks, seed=0):
    slot = lrbench.Slot("model.layers.0.mlp.up_proj.weight", 0, "mlp.up", tuple(W.shape))
    return reducer.prepare(W, ranks, lrbench.Context.seeded(slot, reducer, seed))


def reduce(reducer, W, rank, seed=0):
    factors = prepared(reducer, W, [rank], seed).at_rank(rank)
    return validate_factors(factors, tuple(W.shape), rank, reducer)


def rank_within(reducer, W, keep):
    slot = lrbench.Slot("w", 0, "mlp.up", tuple(W.shape))
    return closed_rank(RankRequest("keep", keep), reducer, slot)


def at_keep(reducer, W, keep):
    return reduce(reducer, W, rank_within(reducer, W, keep))


def error(W, factors):
    return float(torch.linalg.matrix_norm(W - factors.dense().double()))


def _slow_if_many(reducer):
    many = isinstance(reducer, ClusteredSVD) or (
        getattr(reducer, "store", None) == "pivoted" and not isinstance(reducer, SVD)
    )
    return pytest.param(reducer, marks=pytest.mark.slow) if many else reducer


@pytest.mark.parametrize(
    "reducer", [_slow_if_many(reducer) for reducer in ALL], ids=lambda reducer: repr(reducer).replace(" ", "")
)
def test_every_structured_reducer_keeps_its_contract_and_its_promises(reducer):
    failed = [f"{r.name}: {r.detail}" for r in check_reducer(reducer) if not r.passed]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize(
    "reducer", [one for one in ALL if not one.needs], ids=lambda reducer: repr(reducer).replace(" ", "")
)
def test_every_structured_reducer_keeps_its_accuracy_in_float32(reducer):
    W = slow(40, 60)
    for rank in (3, 13):
        single = error(W, reduce(reducer, W.float(), rank))
        assert single <= error(W, reduce(reducer, W, rank)) * 1.02 + 1e-4 * float(W.norm())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SVD(store="thin"), "factors or pivoted"),
        (lambda: RandomizedSVD(store="thin"), "factors or pivoted"),
        (lambda: Monarch(blocks=0), "at least 1"),
        (lambda: Monarch(blocks=(2, 0)), "at least 1"),
        (lambda: ClusteredSVD(clusters=0), "at least 1"),
        (lambda: ClusteredSVD(iterations=-1), "at least 0"),
        (lambda: ClusteredSVD(ranks="fair"), "energy or equal"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_block_counts_can_be_written_in_a_suite_in_three_ways():
    assert [build(Monarch, {"blocks": b}).blocks for b in ("auto", 4, [2, 8])] == ["auto", 4, (2, 8)]
    for wrong in ("many", [2], [2, 4, 8], 2.5, True):
        with pytest.raises(ParameterError, match="monarch: blocks"):
            build(Monarch, {"blocks": wrong})


def test_what_has_the_rank_must_be_said_in_words():
    class Unsaid(RandomSubspace):
        rank_of = ""

    failed = [r for r in check_reducer(Unsaid) if not r.passed]
    assert [r.detail for r in failed] == ["rank_of is ''; name the object that has the rank, as 'each block'"]


@pytest.mark.parametrize("reducer", [SVD(store="pivoted"), Monarch(), ClusteredSVD(clusters=3)])
def test_factored_layers_of_every_structure_keep_the_bias_and_survive_a_file(reducer, tmp_path):
    W, bias, x = slow(20, 30).float(), normal(20).float(), normal(2, 5, 30).float()
    factors = reduce(reducer, W, 4)
    factors.save(tmp_path / "w.safetensors")
    module = lrbench.Factors.load(tmp_path / "w.safetensors").module(bias)
    torch.testing.assert_close(module(x), x @ factors.dense().T + bias, rtol=1e-4, atol=1e-4)
    numbers = (tmp_path / "w.safetensors").stat().st_size
    assert factors.stored_bytes <= numbers <= factors.stored_bytes + 1000


# store: pivoted


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (24, 24)])
@pytest.mark.parametrize("reducer", LOW_RANK)
def test_pivoted_storage_is_the_same_matrix_in_fewer_numbers(reducer, shape):
    W = slow(*shape)
    for rank in (1, 7, 23, min(shape)):
        factors, compact = reduce(reducer(), W, rank), reduce(reducer(store="pivoted"), W, rank)
        assert isinstance(factors, lrbench.LowRank)
        assert isinstance(compact, lrbench.Interpolative)
        assert compact.side == ("rows" if shape[0] <= shape[1] else "columns")
        assert compact.stored_numbers == rank * (sum(shape) - rank) <= math.prod(shape)
        torch.testing.assert_close(compact.dense(), factors.dense(), rtol=0, atol=1e-12 * float(W.norm()))


@pytest.mark.parametrize("shape", [(192, 512), (512, 192), (256, 256)])
@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [
        (torch.float64, 0, 1e-14),
        (torch.float32, 1e-8, 7e-7),
        (torch.float16, 1e-4, 1.5e-3),
        (torch.bfloat16, 1e-3, 1.2e-2),
    ],
)
def test_pivoted_storage_loses_a_few_roundings_of_its_dtype(shape, dtype, least, most):
    W = slow(*shape)
    for rank in (24, 96, 168):
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        left, right = U[:, :rank] * S[:rank], Vh[:rank]
        stored = pivoted(left, right, torch.float64).to(dtype).to(torch.float64).dense()
        assert least <= float((stored - left @ right).norm() / (left @ right).norm()) <= most


def test_the_skeleton_is_made_of_rows_of_the_approximation_and_not_of_the_weight():
    W = slow(20, 30)
    compact = reduce(SVD(store="pivoted"), W, 6)
    approximation = reduce(SVD(), W, 6).dense()
    torch.testing.assert_close(compact.skeleton, approximation[compact.indices])
    assert not torch.allclose(compact.skeleton, W[compact.indices], atol=1e-3)


class Alternating(SVD):
    """Takes the leading components at even ranks, and those after them at odd ones: no rank extends the one below."""

    name = "alternating"
    promises = frozenset({"nested"})

    def prepare(self, weight, ranks, context):
        return AlternatingPrepared(self, weight)


class AlternatingPrepared(lrbench.Prepared):
    def __init__(self, reducer, weight):
        self.reducer, (self.U, self.S, self.Vh) = reducer, torch.linalg.svd(weight, full_matrices=False)

    def at_rank(self, rank):
        first = rank % 2 * max(len(self.S) - rank, 0)
        part = slice(first, first + rank)
        return self.reducer.stored(self.U[:, part], self.S[part, None] * self.Vh[part])


@pytest.mark.parametrize("store", ["factors", "pivoted"])
def test_what_a_product_promises_is_checked_however_it_is_stored(store):
    promised = {reducer.name: "nested" in reducer.promises for reducer in STORING}
    assert promised["svd"]
    assert promised["svd-llm"]
    failed = [f"{r.name}: {r.detail}" for r in check_reducer(Alternating(store=store)) if not r.passed]
    assert failed
    assert all("promises that a larger rank extends a smaller one" in line for line in failed)


@pytest.mark.parametrize("rank_of_product", [0, 1, 3])
@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (9, 9)])
def test_a_product_of_a_lower_rank_than_its_factors_is_stored_exactly(shape, rank_of_product):
    left = normal(shape[0], rank_of_product) @ normal(rank_of_product, 7, seed=1)
    right = normal(7, rank_of_product, seed=2) @ normal(rank_of_product, shape[1], seed=3)
    for a, b in ((left, right), (left, normal(7, shape[1])), (normal(shape[0], 7), right)):
        compact = pivoted(a, b, torch.float64).check()
        assert bool(compact.coefficients.isfinite().all())
        torch.testing.assert_close(compact.dense(), a @ b, rtol=0, atol=1e-12 * (1 + float((a @ b).norm())))


def test_coefficients_stay_small_where_those_of_lu_grow_exponentially():
    k = 30  # Wilkinson's: LU with partial pivoting exchanges nothing, and its coefficients reach 2^(k - 1)
    A = torch.cat([torch.eye(k).double() - torch.ones(k, k).double().tril(-1), -torch.ones(3, k).double()])
    plain = A[k:] @ torch.linalg.inv(A[:k])
    assert float(plain.abs().max()) > 1e8
    rows, coefficients = skeleton_rows(A)
    others = [i for i in range(k + 3) if i not in rows.tolist()]
    assert float(coefficients.abs().max()) <= DOMINANCE
    torch.testing.assert_close(coefficients @ A[rows], A[others], rtol=0, atol=1e-9)


def test_pivoted_storage_reaches_a_higher_rank_at_equal_numbers_and_errs_less():
    W = slow(60, 80)
    compact, factors = SVD(store="pivoted"), SVD()
    assert rank_within(compact, W, 0.8) > rank_within(factors, W, 0.8)
    assert error(W, at_keep(compact, W, 0.8)) < 0.8 * error(W, at_keep(factors, W, 0.8))
    slot = lrbench.Slot("w", 0, "mlp.up", (4096, 4096))
    assert [closed_rank(RankRequest("keep", 0.8), r, slot) for r in (factors, compact)] == [1638, 2264]


# monarch


@pytest.mark.parametrize(("m", "n", "J", "K", "r"), [(12, 20, 3, 4, 2), (16, 16, 4, 4, 1), (13, 21, 2, 4, 2)])
def test_monarch_is_exact_on_a_monarch_matrix_that_svd_is_not_exact_on(m, n, J, K, r):
    L, I = -(-m // J), -(-n // K)  # noqa: E741
    W = lrbench.BlockDiagonalProduct(normal(J, L, K, r), normal(K, J, r, I), m, n).dense()
    found = reduce(Monarch(blocks=(J, K)), W, r)
    torch.testing.assert_close(found.dense(), W, rtol=0, atol=1e-12 * float(W.norm()))
    assert found.stored_numbers == r * J * K * (L + I)
    as_small = found.stored_numbers // (m + n)
    assert error(W, reduce(SVD(), W, as_small)) > 0.05 * float(W.norm())


def test_monarch_is_the_truncated_svd_of_every_block_on_its_own():
    W = slow(12, 20)
    dense = reduce(Monarch(blocks=(3, 4)), W, 2).dense()
    for j in range(3):
        for k in range(4):
            rows, columns = slice(j, None, 3), slice(5 * k, 5 * k + 5)
            U, S, Vh = torch.linalg.svd(W[rows, columns], full_matrices=False)
            expected = (U[:, :2] * S[:2]) @ Vh[:2]
            torch.testing.assert_close(dense[rows, columns], expected, rtol=0, atol=1e-10 * float(W.norm()))


def test_monarch_of_one_block_is_the_svd():
    W = slow(12, 20)
    assert error(W, reduce(Monarch(blocks=1), W, 5)) == pytest.approx(optimal_errors(W)[5])


@pytest.mark.parametrize("decay", [0.8, 0.05])
def test_monarch_knows_its_errors_below_what_a_gram_can_see(decay):
    U, V = torch.linalg.qr(normal(24, 24)).Q, torch.linalg.qr(normal(30, 24, seed=1)).Q
    W = (U * decay ** torch.arange(24).double()) @ V.T
    p = prepared(Monarch(blocks=2), W, [12])
    for rank, stated in enumerate(p.errors(range(1, 13)), start=1):
        assert error(W, p.at_rank(rank)) == pytest.approx(stated, rel=0.02, abs=1e-14)


def test_keep_gives_monarch_the_layout_of_least_error_among_all_that_fit():
    W = normal(64, 64) * (1.5 * normal(64, 1, seed=4)).exp() * (0.5 * normal(1, 64, seed=5)).exp()
    for keep in (0.2, 0.5, 0.8):
        rank = rank_within(Monarch(), W, keep)
        p = prepared(Monarch(), W, [rank])
        found, budget = p.at_rank(rank), rank * 2 * (64 + 64)
        assert found.stored_numbers <= budget <= keep * W.numel()
        tried = []
        for J in (2, 4, 8):
            for K in (2, 4, 8):
                r = min(budget // (64 * K + 64 * J), 64 // max(J, K))
                if r:
                    tried.append((error(W, reduce(Monarch(blocks=(J, K)), W, r)), f"{J}x{K}", r))
        least = min(tried)
        assert error(W, found) == pytest.approx(least[0])
        assert p.chosen(rank) == {"blocks": least[1], "block_rank": least[2]}
        assert found.blocks == tuple(map(int, least[1].split("x")))
        assert found.block_rank == least[2]


@pytest.mark.parametrize("turned", [False, True])
def test_monarch_beats_the_svd_at_equal_numbers_where_rows_and_columns_are_heavy(turned):
    W = normal(256, 256) * (1.5 * normal(256, 1, seed=4)).exp() * (0.5 * normal(1, 256, seed=5)).exp()
    W = W.T if turned else W
    ours, theirs = at_keep(Monarch(), W, 0.5), at_keep(SVD(), W, 0.5)
    assert ours.stored_numbers <= theirs.stored_numbers
    assert error(W, ours) < 0.85 * error(W, theirs)


def test_monarch_of_more_blocks_than_rows_is_skipped_with_the_reason():
    slot = lrbench.Slot("w", 0, "mlp.up", (6, 20))
    assert Monarch(blocks=8).supports(slot) == "8 x 8 blocks do not fit a weight of 6 x 20"
    assert Monarch(blocks=(6, 8)).supports(slot) is None
    assert Monarch().supports(slot) is None


def test_block_errors_are_those_of_an_svd_of_every_block():
    blocks = normal(2, 3, 5, 8)
    sigma = torch.linalg.svdvals(blocks)
    expected = [float(sigma[..., r:].square().sum().sqrt()) for r in range(6)]
    assert block_errors(blocks) == pytest.approx(expected)


# clustered-svd


def union_of_subspaces(m, n, K, d, seed):
    labels = torch.randint(0, K, (m,), generator=torch.Generator().manual_seed(seed))
    bases = normal(K, d, n, seed=seed)
    return torch.stack([normal(d, seed=1000 + i) @ bases[c] for i, c in enumerate(labels.tolist())]), labels


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("m", "n", "K", "d"), [(60, 40, 3, 4), (120, 80, 4, 6)])
def test_clustered_svd_is_exact_on_a_union_of_subspaces_that_svd_is_not_exact_on(m, n, K, d, seed):
    W, labels = union_of_subspaces(m, n, K, d, seed)
    found = reduce(ClusteredSVD(clusters=K), W, d, seed)
    assert error(W, found) <= 1e-9 * float(W.norm())
    assert {frozenset(rows.tolist()) for rows in found.rows.split(list(found.sizes))} == {
        frozenset((labels == c).nonzero().flatten().tolist()) for c in range(K)
    }
    assert found.rank == K * d
    as_small = -(-found.stored_numbers // (m + n))
    assert error(W, reduce(SVD(), W, as_small)) > 0.1 * float(W.norm())


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_clustered_svd_of_one_cluster_is_the_svd(shape):
    W = slow(*shape)
    for rank in (1, 5, 12):
        found = reduce(ClusteredSVD(clusters=1), W, rank)
        torch.testing.assert_close(found.dense(), reduce(SVD(), W, rank).dense(), rtol=0, atol=1e-12)
        assert found.stored_numbers == rank * 32
        assert found.stored_bytes == 8 * rank * 32 + 4 * shape[0]


def test_each_cluster_is_its_own_truncated_svd_and_ranks_are_those_chosen():
    W = slow(40, 30) * (torch.arange(40) % 3 + 1).double()[:, None]
    p = prepared(ClusteredSVD(clusters=3), W, [4])
    found = p.at_rank(4)
    assert p.chosen(4) == {
        "cluster_sizes": " + ".join(map(str, found.sizes)), "cluster_ranks": " + ".join(map(str, found.ranks))
    }  # fmt: skip
    for rows, rank, (left, basis) in zip(
        found.rows.split(list(found.sizes)), found.ranks, found.clusters(), strict=True
    ):
        own = float((W[rows] - left @ basis).norm())
        assert own == pytest.approx(optimal_errors(W[rows])[rank])


def test_ranks_by_energy_err_no_more_than_equal_ones_and_less_where_clusters_differ():
    W = torch.empty(80, 60).double()  # every second row of 3 dimensions, the others of 9
    W[::2] = normal(40, 3, seed=1) @ normal(3, 60, seed=2)
    W[1::2] = normal(40, 9, seed=3) @ normal(9, 60, seed=4)
    for rank in (2, 4, 6, 9):
        equal, energy = (reduce(ClusteredSVD(clusters=2, ranks=r), W, rank) for r in ("equal", "energy"))
        assert energy.stored_numbers <= rank * (80 + 2 * 60)
        assert error(W, energy) <= error(W, equal) * (1 + 1e-9)
    equal, energy = (reduce(ClusteredSVD(clusters=2, ranks=r, restarts=10), W, 6) for r in ("equal", "energy"))
    assert sorted(zip(energy.sizes, energy.ranks, strict=True)) == [(40, 3), (40, 9)]
    assert error(W, energy) <= 1e-9 * float(W.norm()) < 0.1 * error(W, equal)


@pytest.mark.parametrize("seed", range(3))
def test_k_subspaces_never_gets_worse_by_going_on(seed):
    W = union_of_subspaces(120, 40, 4, 8, seed)[0] + 0.3 * normal(120, 40, seed=seed + 50)
    draws = torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()
    sums = [k_subspaces(W, 4, 5, draws, iterations)[1] for iterations in range(12)]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(sums))
    assert sums[-1] < sums[0]
    labels, stated = k_subspaces(W, 4, 5, draws, 12)
    assert stated == pytest.approx(
        sum(optimal_errors(W[labels == c])[5] ** 2 for c in range(4) if (labels == c).sum() > 5)
    )


def test_k_subspaces_copes_with_rows_that_repeat_and_rows_of_zeros():
    W = torch.zeros(9, 5).double()
    W[3:6] = normal(5)
    labels, rest = k_subspaces(W, 4, 2, [0.1, 0.9, 0.5, 0.999], 10)
    assert labels.shape == (9,)
    assert rest <= 1e-20
    assert reduce(ClusteredSVD(clusters=20), W, 1).check().shape == (9, 5)


# controls


@pytest.mark.parametrize("shape", [(16, 24), (24, 16)])
def test_a_random_subspace_errs_by_the_share_of_directions_it_leaves_out(shape):
    W, trials = slow(*shape), 400
    for rank in (2, 8, 15):
        squares = torch.tensor([error(W, reduce(RandomSubspace(), W, rank, seed)) ** 2 for seed in range(trials)])
        expected = (1 - rank / 16) * float(W.square().sum())
        assert abs(float(squares.mean()) - expected) <= 4 * float(squares.std()) / math.sqrt(trials)


def test_a_random_subspace_is_a_projection_of_the_shorter_side():
    W = slow(16, 24)
    factors = reduce(RandomSubspace(), W, 5)
    torch.testing.assert_close(factors.left.T @ factors.left, torch.eye(5).double())
    torch.testing.assert_close(factors.right, factors.left.T @ W)
    assert error(W, reduce(RandomSubspace(), W, 16)) <= 1e-12 * float(W.norm())


@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (20, 20)])
def test_bottom_is_what_truncation_throws_away(shape):
    W, s = slow(*shape), min(shape)
    p = prepared(Bottom(), W, [s])
    sigma = torch.linalg.svdvals(W)
    for rank in (1, 5, s - 1):
        rest = W - reduce(SVD(), W, s - rank).dense()
        torch.testing.assert_close(p.at_rank(rank).dense(), rest, rtol=0, atol=1e-10 * float(W.norm()))
        assert p.errors([rank]) == pytest.approx([float(sigma[: s - rank].norm())])
    assert p.errors([s]) == [0.0]


def test_methods_stand_in_the_order_that_they_should():
    W = slow(40, 60)
    for rank in (4, 12, 24):
        best, chance, worst = (error(W, reduce(r(), W, rank)) for r in (SVD, RandomSubspace, Bottom))
        assert best < chance < worst
