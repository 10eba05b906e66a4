"""The built-in reducers: conformance, oracles, published bounds, and the statistics of the random ones."""

import itertools
import math
from pathlib import Path

import numpy
import pytest
import scipy.linalg.interpolative
import torch
from lrbench.plugins import cr, cur, id, random_columns, rsvd, svd
from safetensors import safe_open
from sklearn.utils.extmath import randomized_svd

import lrbench
from lrbench import linalg
from lrbench.linalg import RowRefit, gaussian, lupp_pivots, optimal_errors
from lrbench.reducers.output_check import validate_factors
from lrbench.testing import check_reducer
from tests.support.slow_cases import slow_cases

SVD, RandomizedSVD, RandomColumns = svd.SVD, rsvd.RandomizedSVD, random_columns.RandomColumns
ID, CR, CUR = id.InterpolativeDecomposition, cr.CR, cur.CURDecomposition

DEFAULTS = [SVD(), RandomizedSVD(), ID(), CR(), CUR(), RandomColumns()]
VARIANTS = [
    RandomizedSVD(oversample=0),
    RandomizedSVD(power_iterations=0),
    RandomizedSVD(algorithm="gram"),
    RandomizedSVD(algorithm="sketch"),
    ID(selection="lupp"),
    *(ID(selection=s, side=t) for s in ("cholesky", "lupp", "cpqr") for t in ("rows", "columns")),
    CR(sampling="random"),
    *(CUR(selection=s) for s in ("deim", "leverage", "cpqr")),
]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(m, n, seed=0, power=0.6):
    """Slow decay, with a few heavy rows and columns: roughly what trained weights look like."""
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
    return prepared(reducer, W, [rank], seed).at_rank(rank)


def error(W, factors):
    return float(torch.linalg.matrix_norm(W - factors.dense().double()))


def _chooses_afresh(reducer):
    """Whether each rank has a choice of its own, so that only the factors tell the error."""
    return isinstance(reducer, ID | CUR) and reducer.selection in (
        {"cpqr"} if isinstance(reducer, ID) else {"leverage"}
    )


def label(reducer):
    return repr(reducer).replace(" ", "")


@pytest.mark.parametrize("reducer", [*DEFAULTS, *slow_cases(*VARIANTS)], ids=label)
def test_every_built_in_reducer_keeps_its_contract_and_its_promises(reducer):
    failed = [f"{r.name}: {r.detail}" for r in check_reducer(reducer) if not r.passed]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("reducer", [*DEFAULTS, *VARIANTS], ids=label)
def test_every_built_in_reducer_keeps_its_accuracy_in_float32(reducer):
    W = slow(40, 60)
    for rank in (3, 20, 40):
        single = error(W, reduce(reducer, W.float(), rank))
        assert single <= error(W, reduce(reducer, W, rank)) * 1.02 + 1e-4 * float(W.norm())


def test_built_in_reducers_have_the_names_that_suites_use():
    modules = (svd, rsvd, id, cr, cur, random_columns)
    assert [r.name for m in modules for r in m.lrbench_reducers()] == [
        "svd",
        "rsvd",
        "id",
        "cr",
        "cur",
        "random-columns",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomizedSVD(oversample=-1), "must not be negative"),
        (lambda: RandomizedSVD(algorithm="fast"), "auto, gram or sketch"),
        (lambda: ID(selection="best"), "cholesky, lupp or cpqr"),
        (lambda: ID(side="left"), "rows, columns or auto"),
        (lambda: CR(sampling="some"), "top or random"),
        (lambda: CUR(selection="best"), "lupp, deim, leverage or cpqr"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("reducer", [SVD(), ID(), ID(side="columns"), ID(selection="lupp")], ids=label)
@pytest.mark.parametrize("decay", [0.9, 0.3])
def test_all_factorizations_are_made_in_prepare(reducer, decay, monkeypatch):
    U, V = torch.linalg.qr(normal(24, 24)).Q, torch.linalg.qr(normal(30, 24, seed=1)).Q
    p = prepared(reducer, (U * decay ** torch.arange(24).double()) @ V.T, [2, 16])  # .3 ** 16 is below what a Gram sees
    for name in ("eigenvectors", "pivoted_cholesky", "symmetric_product"):
        monkeypatch.setattr(linalg.lapack, name, lambda *args, name=name: pytest.fail(f"{name} in at_rank"))
    for name in ("eigh", "svd", "qr", "lu_factor_ex", "cholesky_ex"):
        monkeypatch.setattr(torch.linalg, name, lambda *args, name=name, **kwargs: pytest.fail(f"{name} in at_rank"))
    assert (p.at_rank(2).rank, p.at_rank(16).rank, p.at_rank(9).rank) == (2, 16, 9)


@pytest.mark.parametrize("reducer", [SVD(), *(CR(sampling=s) for s in ("top", "random"))], ids=label)
def test_where_one_preparation_serves_all_ranks_they_are_those_of_a_preparation_each_bit_for_bit(reducer):
    W = slow(20, 30).float()
    shared = prepared(reducer, W, [3, 8, 20])
    assert reducer.one_preparation
    for rank in (20, 3, 8):
        assert torch.equal(shared.at_rank(rank).dense(), reduce(reducer, W, rank).dense())


@pytest.mark.parametrize("reducer", [r for r in (*DEFAULTS, *VARIANTS) if not _chooses_afresh(r)], ids=label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(18, 30), (30, 18)])
def test_the_error_of_every_rank_is_known_and_is_that_of_the_factors(reducer, dtype, shape):
    W = slow(*shape).to(dtype)
    largest = reducer.max_rank(shape)
    p = prepared(reducer, W, [largest])
    known = p.errors(range(1, largest + 1))
    for rank, told in enumerate(known, start=1):
        measured = error(W.double(), p.at_rank(rank))
        assert told == pytest.approx(
            measured, rel=1e-3, abs=(1e-7 if dtype == torch.float64 else 2e-5) * float(W.norm())
        )


@pytest.mark.parametrize("name", ["model.layers.3.mlp.down_proj.weight", "model.layers.5.self_attn.q_proj.weight"])
def test_on_a_trained_weight_the_methods_stand_as_theory_has_them(name):
    file = Path(lrbench.__file__).parent / "models" / "almanac" / "checkpoint" / "model.safetensors"
    with safe_open(str(file), "pt") as checkpoint:
        W = checkpoint.get_tensor(name).float()
    optimum, size = optimal_errors(W), min(W.shape)
    for rank in (size // 10, size // 2):
        errors = {r.name: error(W.double(), reduce(r, W, rank)) for r in DEFAULTS}
        assert errors["svd"] == pytest.approx(optimum[rank], rel=1e-5)
        assert optimum[rank] < errors["rsvd"] < 1.05 * optimum[rank]
        assert errors["rsvd"] < errors["id"] < errors["cur"]
        A = (W.T if W.shape[0] <= W.shape[1] else W).double().numpy()
        order, T = scipy.linalg.interpolative.interp_decomp(A.copy(), rank, rand=False)
        theirs = scipy.linalg.interpolative.reconstruct_matrix_from_id(A[:, order[:rank]], order, T)
        assert errors["id"] <= float(numpy.linalg.norm(A - theirs)) * (1 + 1e-4)
        U, S, Vh = randomized_svd(W.numpy(), rank, n_oversamples=8, n_iter=2, random_state=0)
        assert errors["rsvd"] <= float(numpy.linalg.norm(W.numpy() - (U * S) @ Vh)) * 1.01


# svd


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (32, 32)])
def test_svd_equals_the_truncation_of_torch_linalg_svd(shape):
    W = slow(*shape)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    for rank in (1, 7, 29):
        expected = (U[:, :rank] * S[:rank]) @ Vh[:rank]
        torch.testing.assert_close(reduce(SVD(), W, rank).dense(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("decay", [0.5, 0.1])
def test_svd_is_optimal_below_what_a_gram_can_see(decay):
    U, V = torch.linalg.qr(normal(30, 30)).Q, torch.linalg.qr(normal(40, 30, seed=1)).Q
    sigma = decay ** torch.arange(30).double()
    W = (U * sigma) @ V.T
    for rank in range(1, 31):
        optimum = float(sigma[rank:].square().sum().sqrt())
        assert error(W, reduce(SVD(), W, rank)) <= optimum * 1.02 + 2e-15


# rsvd


def test_rsvd_is_as_near_to_the_optimum_as_scikit_learn_is():
    W = slow(60, 90)
    for rank in (5, 20):
        U, S, Vh = randomized_svd(W.numpy(), rank, n_oversamples=8, n_iter=2, random_state=0)
        theirs = float(numpy.linalg.norm(W.numpy() - (U * S) @ Vh))
        assert error(W, reduce(RandomizedSVD(), W, rank)) <= theirs * 1.01


def test_rsvd_without_oversampling_errs_as_lasers_own_svd_lowrank_does():
    W, rank, seeds = slow(40, 60), 10, range(20)
    ours = torch.tensor([error(W, reduce(RandomizedSVD(oversample=0), W, rank, seed)) for seed in seeds])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = []
        for _ in seeds:
            U, S, V = torch.svd_lowrank(W, q=rank, niter=2)
            theirs.append(float(torch.linalg.matrix_norm(W - (U * S) @ V.T)))
    difference = float(ours.mean()) - sum(theirs) / len(theirs)
    spread = math.sqrt((float(ours.var()) + float(torch.tensor(theirs).var())) / len(theirs))
    assert abs(difference) <= 4 * spread


def test_rsvd_meets_the_mean_bound_of_halko_martinsson_and_tropp():
    W, k, p = slow(40, 60), 6, 4
    # ‖W − (QQᵀW)_k‖² = ‖W − QQᵀW‖² + ‖QQᵀW − (QQᵀW)_k‖². The mean of the first is at most 1 + k/(p − 1) optima squared
    # (the proof of their theorem 10.5), and the second at most one, as a projection's singular values are no larger.
    bound = math.sqrt(2 + k / (p - 1)) * optimal_errors(W)[k]
    reducer = RandomizedSVD(oversample=p, power_iterations=0)
    assert sum(error(W, reduce(reducer, W, k, seed)) for seed in range(20)) / 20 <= bound


def test_another_seed_gives_another_sketch_and_power_iterations_pay():
    W = slow(40, 60)
    plain = RandomizedSVD(oversample=0, power_iterations=0)
    assert error(W, reduce(plain, W, 8, seed=0)) != error(W, reduce(plain, W, 8, seed=1))
    assert error(W, reduce(RandomizedSVD(), W, 8)) < error(W, reduce(plain, W, 8))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (40, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_algorithms_of_rsvd_have_the_same_result_up_to_rounding(shape, dtype):
    W = slow(*shape).to(dtype)
    for rank in (3, 15, 30):
        by_gram, by_sketch = (reduce(RandomizedSVD(algorithm=name), W, rank).dense() for name in ("gram", "sketch"))
        distance = float((by_gram - by_sketch).norm() / W.norm())
        assert distance <= (1e-9 if dtype == torch.float64 else 2e-3)
        assert error(W, reduce(RandomizedSVD(algorithm="gram"), W, rank)) == pytest.approx(
            error(W, reduce(RandomizedSVD(algorithm="sketch"), W, rank)), rel=1e-4
        )


def test_rsvd_takes_the_gram_only_where_the_tail_has_digits_left():
    U, V = torch.linalg.qr(normal(60, 60)).Q, torch.linalg.qr(normal(90, 60, seed=1)).Q
    W = (U * 0.7 ** torch.arange(60).double()) @ V.T
    for dtype, ranks in ((torch.float32, (5, 15)), (torch.float64, (30, 50))):
        chosen = [prepared(RandomizedSVD(algorithm="gram"), W.to(dtype), [k]).chosen(k)["algorithm"] for k in ranks]
        assert chosen == ["gram", "sketch"]
        for k in ranks:
            factors = reduce(RandomizedSVD(algorithm="gram"), W.to(dtype), k)
            assert error(W, factors) <= 1.05 * optimal_errors(W)[k] + 1e-6 * (dtype == torch.float32)


def test_what_was_chosen_is_said():
    W = slow(40, 60)
    assert prepared(SVD(), W, [4]).chosen(4) == {"algorithm": "gram"}
    assert prepared(SVD(), W * 1e-9 ** (torch.arange(60) > 3), [4]).chosen(4) == {"algorithm": "svd"}
    assert prepared(ID(), W, [4]).chosen(4) == {"algorithm": "lapack"}
    assert prepared(ID(side="columns"), W, [4]).chosen(4) == {"algorithm": "rows"}
    assert prepared(RandomizedSVD(algorithm="sketch"), W, [4]).chosen(4) == {"algorithm": "sketch"}


# id


@pytest.mark.parametrize(
    "reducer", [ID(side="rows"), ID(side="columns"), ID(selection="lupp"), ID(selection="cpqr")], ids=label
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_skeleton_is_bit_identical_to_the_weight_and_the_identity_part_exact(reducer, dtype):
    W = slow(20, 30).to(dtype)
    factors = reduce(reducer, W, 7)
    kept = (lambda A: A[factors.indices]) if factors.side == "rows" else (lambda A: A[:, factors.indices])
    assert torch.equal(factors.skeleton, kept(W))
    assert torch.equal(kept(factors.dense()), kept(W))


@pytest.mark.parametrize("reducer", [ID(), ID(selection="lupp"), ID(selection="cpqr"), RandomColumns()], ids=label)
def test_the_residual_of_a_refit_is_orthogonal_to_the_skeleton(reducer):
    W = slow(20, 30)
    factors = reduce(reducer, W, 7)
    residual = W - factors.dense()
    products = residual @ factors.skeleton.T if factors.side == "rows" else factors.skeleton.T @ residual
    assert float(products.abs().max()) <= 1e-10 * float(W.norm()) ** 2


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_id_is_never_worse_than_scipys(shape):
    W = slow(*shape)
    for rank in (4, 12, 20):
        indices, coefficients = scipy.linalg.interpolative.interp_decomp(W.numpy().copy(), rank, rand=False)
        skeleton = scipy.linalg.interpolative.reconstruct_skel_matrix(W.numpy(), rank, indices)
        theirs = W - torch.from_numpy(
            scipy.linalg.interpolative.reconstruct_matrix_from_id(skeleton, indices, coefficients)
        )
        ours = error(W, reduce(ID(side="columns"), W, rank))
        assert ours <= float(theirs.norm()) * (1 + 1e-9)


def test_rows_of_the_transpose_are_columns():
    W = slow(18, 25)
    rows, columns = reduce(ID(side="rows"), W, 6), reduce(ID(side="columns"), W.T, 6)
    assert rows.indices.tolist() == columns.indices.tolist()
    torch.testing.assert_close(rows.dense(), columns.dense().T)


def test_auto_takes_the_shorter_side():
    assert reduce(ID(), slow(10, 12), 3).side == "rows"
    assert reduce(ID(), slow(12, 10), 3).side == "columns"


def test_a_permutation_of_the_columns_permutes_the_result():
    W, order = slow(18, 25), torch.randperm(25, generator=torch.Generator().manual_seed(1))
    for reducer in (SVD(), ID(), ID(side="columns"), CR(), CUR(selection="deim"), CUR(selection="cpqr")):
        expected = reduce(reducer, W, 6).dense()[:, order]
        torch.testing.assert_close(reduce(reducer, W[:, order], 6).dense(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_a_refit_betters_the_coefficients_that_a_sketch_gives_by_itself(seed):
    W, k = slow(40, 60), 20
    Y = W @ gaussian(60, k, torch.Generator().manual_seed(seed), like=W)
    rows, every = lupp_pivots(Y, k), torch.arange(40)
    own = Y @ torch.linalg.inv(Y[rows])  # Y = own @ Y[rows]
    fitted = RowRefit(W, rows).coefficients(k, every)
    assert float((W - own @ W[rows]).norm()) > 1.5 * float((W - fitted @ W[rows]).norm())


@pytest.mark.parametrize("seed", range(5))
def test_id_is_within_the_exponential_bound_of_pivoted_qr_and_above_the_best_subset(seed):
    W, k = normal(7, 9, seed=seed) * torch.linspace(1, 3, 7)[:, None], 3
    ours = error(W, reduce(ID(side="rows"), W, k))
    best = min(_subset_error(W, subset) for subset in itertools.combinations(range(7), k))
    assert best * (1 - 1e-9) <= ours
    assert best <= math.sqrt(k + 1) * optimal_errors(W)[k]  # there is a subset this good (Deshpande et al., 2006)
    spectral = float(torch.linalg.matrix_norm(W - reduce(ID(side="rows"), W, k).dense(), 2))
    # No row left is longer than the next pivot, and that is at most 2^k sigma_{k+1} (Gu, Eisenstat, 1996)
    assert spectral <= 2**k * math.sqrt(7 - k) * float(torch.linalg.svdvals(W)[k])


def _subset_error(W, rows):
    Q = torch.linalg.qr(W[list(rows)].T).Q
    return float((W - (W @ Q) @ Q.T).norm())


def test_id_on_a_kahan_matrix_is_finite_monotone_and_above_the_optimum():
    n, c = 30, 0.285
    s = math.sqrt(1 - c * c)
    K = torch.diag(s ** torch.arange(n).double()) @ (torch.eye(n).double() - c * torch.ones(n, n).double().triu(1))
    optimum = optimal_errors(K)
    p = prepared(ID(side="columns"), K, list(range(1, n + 1)))
    errors = [error(K, p.at_rank(k)) for k in range(1, n + 1)]
    assert all(b <= a * (1 + 1e-9) + 1e-13 for a, b in itertools.pairwise(errors))
    assert all(e >= optimum[k] * (1 - 1e-6) for k, e in enumerate(errors, start=1))
    assert errors[-1] == 0


def test_choosing_beats_chance_where_columns_differ():
    W = slow(40, 60) * normal(1, 60, seed=5).exp()
    chosen, chance = error(W, reduce(ID(side="columns"), W, 10)), error(W, reduce(RandomColumns(), W, 10))
    assert chosen < 0.9 * chance


def test_choosing_is_worth_next_to_nothing_on_a_haar_random_matrix():
    W = torch.linalg.qr(normal(60, 60)).Q[:40] * (1 + 0.01 * torch.arange(40))[:, None]
    for rank in (5, 10, 20):
        chosen, chance = error(W, reduce(ID(side="columns"), W, rank)), error(W, reduce(RandomColumns(), W, rank))
        assert chosen <= chance * (1 + 1e-9)
        assert chosen > 0.95 * chance


def test_random_columns_stores_what_id_stores_of_columns_but_for_the_choice():
    W = slow(20, 30)
    for reducer in (RandomColumns(), ID(side="columns")):
        factors = reduce(reducer, W, 7)
        others = [j for j in range(30) if j not in factors.indices.tolist()]
        assert factors.side == "columns"
        expected = torch.linalg.lstsq(factors.skeleton, W[:, others]).solution
        torch.testing.assert_close(factors.coefficients, expected, rtol=1e-9, atol=1e-10)
        assert reducer.stored_numbers((20, 30), 7) == factors.stored_numbers


# cr


def test_cr_keeps_the_columns_of_largest_norm_and_errs_by_the_rest():
    W = slow(20, 30)
    factors = reduce(CR(), W, 5)
    norms = W.norm(dim=0)
    assert set(factors.indices.tolist()) == set(norms.topk(5).indices.tolist())
    rest = norms.square().sum() - norms[factors.indices].square().sum()
    assert error(W, factors) == pytest.approx(float(rest.sqrt()))
    assert factors.multiply_adds == 20 * 5


def test_random_cr_merges_equal_draws_and_stores_no_column_twice():
    W = torch.ones(4, 3).double()
    W[:, 0] = 50
    factors = reduce(CR(sampling="random"), W, 3).check()
    assert factors.rank < 3
    assert factors.stored_numbers == 4 * factors.rank
    # Fewer numbers than stated are no contradiction where the rank is lower too.
    assert validate_factors(factors, (4, 3), 3, CR(sampling="random")) is factors


def test_random_cr_has_the_mean_and_the_variance_of_drineas_kannan_and_mahoney():
    W, x, c, trials = slow(8, 12), normal(12, seed=9), 4, 3000
    outcomes = torch.stack([reduce(CR(sampling="random"), W, c, seed).apply(x) for seed in range(trials)])  # (t, m)
    target = W @ x
    standard_errors = outcomes.std(dim=0) / math.sqrt(trials)
    assert bool(((outcomes.mean(dim=0) - target).abs() <= 4 * standard_errors).all())
    p = W.norm(dim=0) / W.norm(dim=0).sum()
    expected = float((x.square() * W.square().sum(0) / (c * p)).sum() - target.square().sum() / c)  # lemma 4
    squares = (outcomes - target).square().sum(1)
    assert abs(float(squares.mean()) - expected) <= 4 * float(squares.std()) / math.sqrt(trials)


def test_an_unbiased_draw_is_no_compressor():
    W = slow(30, 40)
    assert error(W, reduce(CR(sampling="random"), W, 10)) > 2 * error(W, reduce(CR(), W, 10))


# cur


@pytest.mark.parametrize("selection", ["lupp", "deim", "cpqr", "leverage"])
def test_cur_holds_the_best_middle_for_its_rows_and_columns(selection):
    W = slow(20, 30)
    factors = reduce(CUR(selection=selection), W, 6)
    C, R = W[:, factors.columns], W[factors.rows]
    assert torch.equal(factors.C, C)
    assert torch.equal(factors.R, R)
    torch.testing.assert_close(factors.U, torch.linalg.pinv(C) @ W @ torch.linalg.pinv(R), rtol=1e-6, atol=1e-8)
    cross = W - C @ torch.linalg.pinv(W[factors.rows][:, factors.columns]) @ R
    assert error(W, factors) <= float(cross.norm())


@pytest.mark.parametrize("seed", range(4))
def test_the_cross_errs_well_above_the_best_middle_even_on_pivots_of_lu(seed):
    W = slow(40, 60)
    factors = reduce(CUR(), W, 20, seed)
    cross = W - factors.C @ torch.linalg.inv(W[factors.rows][:, factors.columns]) @ factors.R
    assert float(cross.norm()) > 1.3 * error(W, factors)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_lupp_takes_the_rows_that_lu_pivots_on_in_the_columns_it_has_taken(shape):
    W = slow(*shape)
    whole = prepared(CUR(), W, [4, 9]).at_rank(9)
    assert whole.rows.tolist() == lupp_pivots(W[:, whole.columns], 9).tolist()
    alone = reduce(CUR(), W, 4)
    assert (alone.columns.tolist(), alone.rows.tolist()) == (whole.columns[:4].tolist(), whole.rows[:4].tolist())


def test_rows_from_the_columns_taken_err_less_than_rows_from_a_sketch_of_their_own():
    W, k, ours, theirs = slow(40, 60), 10, [], []
    for seed in range(10):
        factors = reduce(CUR(), W, k, seed)
        ours.append(error(W, factors))
        Y = W @ gaussian(60, k, torch.Generator().manual_seed(seed), like=W)
        R = W[lupp_pivots(Y, k)]
        U = torch.linalg.pinv(factors.C) @ W @ torch.linalg.pinv(R)
        theirs.append(float((W - factors.C @ U @ R).norm()))
    assert sum(ours) < sum(theirs)


@pytest.mark.parametrize("seed", range(4))
def test_deim_cur_meets_the_bound_of_sorensen_and_embree(seed):
    W, k = slow(25, 35, seed=seed), 6
    factors = reduce(CUR(selection="deim"), W, k)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    eta_p = 1 / float(torch.linalg.svdvals(U[factors.rows, :k])[-1])
    eta_q = 1 / float(torch.linalg.svdvals(Vh[:k, factors.columns])[-1])
    spectral = float(torch.linalg.matrix_norm(W - factors.dense(), 2))
    assert spectral <= (eta_p + eta_q) * float(S[k])


def test_cur_in_float32_stays_near_float64_at_high_rank():
    W = slow(40, 40)
    for rank in (20, 36, 40):
        both = [error(W, reduce(CUR(), A, rank)) / float(W.norm()) for A in (W, W.float())]
        assert both[1] <= both[0] * 1.01 + 1e-3


# Ranks


@pytest.mark.parametrize("reducer", [SVD(), ID(), ID(selection="lupp"), CUR(), RandomColumns()], ids=label)
def test_methods_that_keep_all_rows_or_columns_reproduce_a_square_weight(reducer):
    W = slow(16, 16)
    assert error(W, reduce(reducer, W, 16)) <= 1e-8 * float(W.norm())


@pytest.mark.parametrize("reducer", DEFAULTS, ids=label)
def test_stored_numbers_are_those_of_the_table(reducer):
    m, n, k = 12, 20, 5
    table = {
        "svd": k * (m + n),
        "rsvd": k * (m + n),
        "id": k * (m + n - k),
        "random-columns": k * (m + n - k),
        "cur": k * (m + n + k),
        "cr": m * k,
    }
    assert reducer.stored_numbers((m, n), k) == table[reducer.name]
    assert reduce(reducer, slow(m, n), k).multiply_adds == table[reducer.name]
    assert reducer.max_rank((m, n)) == (n if reducer.name == "cr" else m)
