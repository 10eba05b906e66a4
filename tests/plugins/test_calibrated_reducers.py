"""Methods that are given statistics of the inputs: best by them, and the plain ones where they say nothing."""

import math

import pytest
import torch
from lrbench.plugins import asvd, cr, fwsvd, id, kfac_svd, nystrom, random_columns, rsvd, svd, svd_llm

import lrbench
from lrbench.linalg import (
    FeatureRefit,
    WeightedSpectrum,
    output_error,
    predicted_loss,
    predicted_losses,
    root,
    shrunk,
)
from lrbench.testing import check_reducer
from tests.support.slow_cases import slow_cases

ID, CR = id.InterpolativeDecomposition, cr.CR
SVDLLM, ASVD, FWSVD, Nystrom = svd_llm.SVDLLM, asvd.ASVD, fwsvd.FisherWeightedSVD, nystrom.Nystrom
KFAC = kfac_svd.KFACSVD

CALIBRATED = [
    SVDLLM(),
    ASVD(),
    ASVD(alpha=1.0),
    FWSVD(),
    KFAC(),
    Nystrom(),
    Nystrom(selection="scores"),
    *(ID(calibrated=True, selection=s, side=t) for s in ("cholesky", "lupp", "cpqr") for t in ("rows", "columns")),
    CR(calibrated=True),
    CR(refit=True),
    CR(calibrated=True, sampling="random"),
]
SHAPES = [(24, 40), (40, 24), (30, 30)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weight(m, n, seed=0):
    s = min(m, n)
    U, V = torch.linalg.qr(normal(m, s, seed=seed)).Q, torch.linalg.qr(normal(n, s, seed=seed + 1)).Q
    return (U * torch.arange(1, s + 1).double() ** -0.5) @ V.T


def inputs(n, tokens=400, seed=5):
    """Correlated inputs with some large features, (tokens, n)."""
    mix = normal(n, n, seed=seed) * torch.arange(1, n + 1).double() ** -1
    return normal(tokens, n, seed=seed + 1) @ mix.T * (1 + 4 * (torch.arange(n) % 7 == 0))


def moments(x):
    return {"second_moment": x.T @ x / len(x), "absmean": x.abs().mean(0), "fisher": x.square().mean(0) + 0.1}


def two_sided(m, n):
    """The moments of correlated inputs (n, n) and output gradients (m, m)."""
    g = inputs(m, seed=9) * 1e-4
    return moments(inputs(n)) | {"output_gradient_moment": g.T @ g / len(g)}


def reduce(reducer, W, rank, statistics):
    slot = lrbench.Slot("model.layers.0.mlp.up_proj.weight", 0, "mlp.up", tuple(W.shape))
    given = {name: statistics[name] for name in reducer.needs}
    return reducer.prepare(W, [rank], lrbench.Context.seeded(slot, reducer, 0, statistics=given)).at_rank(rank)


def label(reducer):
    return repr(reducer).replace(" ", "")


@pytest.mark.parametrize("reducer", [*CALIBRATED[::3], *slow_cases(*CALIBRATED[1::3], *CALIBRATED[2::3])], ids=label)
def test_every_calibrated_reducer_keeps_its_contract_and_its_promises(reducer):
    failed = [f"{r.name}: {r.detail}" for r in check_reducer(reducer) if not r.passed]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize(
    ("calibrated", "plain"),
    [
        (SVDLLM(), svd.SVD()),
        (ASVD(), svd.SVD()),
        (FWSVD(), svd.SVD()),
        (KFAC(), svd.SVD()),
        (Nystrom(selection="scores"), CR()),
        (CR(refit=True), CR()),
        (CR(calibrated=True), CR()),
        (CR(calibrated=True, sampling="random"), CR(sampling="random")),
        *((ID(calibrated=True, side=t, selection=s), ID(side=t, selection=s))
          for t in ("rows", "columns") for s in ("cholesky", "lupp", "cpqr")),
    ],
    ids=lambda reducer: label(reducer) if isinstance(reducer, lrbench.Reducer) else str(reducer),
)  # fmt: skip
def test_with_white_inputs_a_calibrated_method_is_the_plain_one(calibrated, plain, m, n):
    W = weight(m, n)
    white = {"second_moment": torch.eye(n).double(), "absmean": torch.ones(n), "fisher": torch.ones(n)}
    white["output_gradient_moment"] = torch.eye(m).double()
    for rank in (1, 7, min(m, n)):
        assert torch.allclose(reduce(calibrated, W, rank, white).dense(), reduce(plain, W, rank, {}).dense(), atol=1e-9)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_no_method_of_the_same_rank_has_less_output_error_than_svd_llm(m, n):
    W, statistics = weight(m, n), two_sided(m, n)
    H = statistics["second_moment"]
    others = [*CALIBRATED, svd.SVD(), rsvd.RandomizedSVD(), ID(), CR(), random_columns.RandomColumns()]
    for rank in (1, 6, 15, min(m, n) - 1):
        least = output_error(W, reduce(SVDLLM(), W, rank, statistics).dense(), H)
        for other in others:
            assert output_error(W, reduce(other, W, rank, statistics).dense(), H) >= least * (1 - 1e-7), label(other)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_svd_llm_is_the_whitened_truncation_of_the_paper(m, n):
    W, H = weight(m, n), moments(inputs(n))["second_moment"]
    L = torch.linalg.cholesky(H)
    U, S, Vh = torch.linalg.svd(W @ L, full_matrices=False)
    for rank in (1, 9, 20):
        paper = (U[:, :rank] * S[:rank]) @ Vh[:rank] @ torch.linalg.inv(L)
        found = reduce(SVDLLM(), W, rank, {"second_moment": H})
        assert torch.allclose(found.dense(), paper, atol=1e-8)
        expected = math.sqrt(float(S[rank:].square().sum() / S.square().sum()))
        assert output_error(W, found.dense(), H) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_asvd_and_fwsvd_are_the_scaled_truncations_of_their_papers(m, n):
    W, statistics = weight(m, n), two_sided(m, n)
    scales = {ASVD(): statistics["absmean"].sqrt(), FWSVD(): statistics["fisher"].sqrt()}
    for reducer, s in scales.items():
        U, S, Vh = torch.linalg.svd(W * s, full_matrices=False)
        paper = (U[:, :8] * S[:8]) @ Vh[:8] / s
        assert torch.allclose(reduce(reducer, W, 8, statistics).dense(), paper, atol=1e-8)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_refitted_columns_are_the_regression_of_the_output_on_the_features_kept(m, n):
    W, x = weight(m, n), inputs(n)
    statistics = moments(x)
    for reducer in (Nystrom(), Nystrom(selection="scores"), CR(refit=True)):
        for rank in (1, 8, n):
            factors = reduce(reducer, W, rank, statistics)
            solution = torch.linalg.lstsq(x[:, factors.indices], x @ W.T).solution.T  # (m, k)
            assert torch.allclose(factors.columns, solution, atol=1e-6)
    scores = W.norm(dim=0) * statistics["second_moment"].diagonal().sqrt()
    assert reduce(CR(refit=True), W, 5, statistics).indices.tolist() == scores.topk(5).indices.tolist()
    assert reduce(CR(calibrated=True), W, 5, statistics).indices.tolist() == scores.topk(5).indices.tolist()


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_the_calibrated_row_id_is_the_regression_of_the_outputs_on_the_outputs_kept(m, n):
    W, x = weight(m, n), inputs(n)
    y = x @ W.T  # (tokens, m)
    for selection in ("cholesky", "lupp", "cpqr"):
        factors = reduce(ID(calibrated=True, side="rows", selection=selection), W, 9, moments(x))
        assert torch.equal(factors.skeleton, W[factors.indices])
        fitted = y[:, factors.indices] @ torch.linalg.lstsq(y[:, factors.indices], y).solution
        assert torch.allclose(x @ factors.dense().T, fitted, atol=1e-8)


def test_calibration_pays_where_inputs_are_correlated():
    W, statistics = weight(40, 60), moments(inputs(60))
    H = statistics["second_moment"]
    pairs = [(SVDLLM(), svd.SVD()), (ID(calibrated=True), ID(side="rows")), (Nystrom(), CR()), (ASVD(), svd.SVD())]
    for calibrated, plain in pairs:
        lost = [output_error(W, reduce(r, W, 10, statistics).dense(), H) for r in (calibrated, plain)]
        assert lost[0] < 0.9 * lost[1], label(calibrated)


@pytest.mark.parametrize("reducer", [SVDLLM(), ASVD(), FWSVD(), ID(calibrated=True)], ids=label)
def test_inputs_that_are_never_used_or_depend_on_others_do_not_break_it(reducer):
    W, x = weight(20, 30), inputs(30)
    x[:, 4] = 0
    x[:, 7] = x[:, 8] + x[:, 9]
    statistics = moments(x)
    statistics["fisher"][4] = 0
    for rank in (1, 10, 20):
        factors = reduce(reducer, W.float(), rank, statistics)
        assert bool(factors.dense().isfinite().all())
        error = output_error(W, factors.dense(), statistics["second_moment"])
        assert error < (1e-3 if rank == 20 else 1)


def test_features_that_depend_on_each_other_are_not_refitted_without_damping():
    x = inputs(10)
    x[:, 7] = 0
    with pytest.raises(ValueError, match="damping"):
        FeatureRefit(weight(12, 10), x.T @ x, torch.arange(10))


def test_a_singular_second_moment_has_a_root():
    x = inputs(20, tokens=5)
    H = x.T @ x
    L = root(H)
    assert torch.allclose(L @ L.T, H, atol=1e-9 * float(H.norm()))


def test_tails_below_what_a_gram_sees_are_still_the_best():
    W = normal(30, 50) @ torch.diag(10.0 ** -torch.arange(50).double().mul(0.4))
    L = root(moments(inputs(50))["second_moment"])
    spectrum = WeightedSpectrum(W, L)
    S = torch.linalg.svdvals(W @ L)
    for rank in (5, 20, 25):
        exact = float(S[rank:].square().sum().sqrt())
        assert spectrum.weighted_errors()[rank] == pytest.approx(exact, rel=2e-2)
        U, B = spectrum.factors(rank)
        assert float(((W - U @ B) @ L).norm()) == pytest.approx(exact, rel=2e-2)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_kfac_svd_adds_the_least_predicted_loss_of_any_matrix_of_its_rank(m, n):
    W, statistics = weight(m, n), two_sided(m, n)
    H, G = shrunk(statistics["second_moment"], 0.1), shrunk(statistics["output_gradient_moment"], 0.3)
    for rank in (1, 5, 15, min(m, n) - 1):
        least = predicted_loss(W - reduce(KFAC(), W, rank, statistics).dense(), H, G)
        tail = torch.linalg.svdvals(torch.linalg.cholesky(G).T @ W @ torch.linalg.cholesky(H))[rank:]
        assert least == pytest.approx(0.5 * float(tail.square().sum()), rel=1e-6)
        for other in (SVDLLM(), svd.SVD(), FWSVD(), KFAC(shrink_gradients=3.0)):
            assert predicted_loss(W - reduce(other, W, rank, statistics).dense(), H, G) >= least * (1 - 1e-9)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_with_white_gradients_it_is_svd_llm(m, n):
    W, statistics = weight(m, n), two_sided(m, n) | {"output_gradient_moment": 3.0 * torch.eye(m).double()}
    damped = statistics | {"second_moment": shrunk(statistics["second_moment"], 0.1)}
    found, expected = reduce(KFAC(), W, 7, statistics).dense(), reduce(SVDLLM(), W, 7, damped).dense()
    assert float((found - expected).norm()) <= 1e-9 * float(W.norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_its_curve_is_the_error_of_its_factors_at_every_rank(m, n, dtype):
    W, statistics = weight(m, n).to(dtype), two_sided(m, n)
    slot = lrbench.Slot("w", 0, "mlp.up", (m, n))
    statistics = {name: statistics[name] for name in KFAC.needs}
    prepared = KFAC().prepare(W, [1], lrbench.Context.seeded(slot, KFAC(), 0, statistics=statistics))
    ranks = range(1, min(m, n) + 1)
    for rank, error in zip(ranks, prepared.errors(ranks), strict=True):
        assert error == pytest.approx(float((W - prepared.at_rank(rank).dense()).norm()), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_the_losses_of_nested_products_are_those_of_their_differences(m, n):
    statistics, s = two_sided(m, n), min(m, n)
    H, G = statistics["second_moment"], statistics["output_gradient_moment"]
    left, right = normal(m, s, seed=3), normal(s, n, seed=4)
    W = left @ right + weight(m, n)
    losses = predicted_losses(W, left, right, H, G)
    for k in range(s + 1):
        change = W - left[:, :k] @ right[:k]
        assert losses[k] == pytest.approx(0.5 * float((G @ change @ H @ change.T).trace()), rel=1e-9)


@pytest.mark.parametrize("store", ["factors", "pivoted"])
@pytest.mark.parametrize("reducer", [svd.SVD, SVDLLM, ASVD, FWSVD, KFAC], ids=lambda r: r.name)
def test_predicted_losses_of_a_method_are_those_of_its_factors(reducer, store):
    reducer, statistics = reducer(store=store), two_sided(24, 40)
    H, G, W = statistics["second_moment"], statistics["output_gradient_moment"], weight(24, 40)
    slot = lrbench.Slot("w", 0, "mlp.up", (24, 40))
    needed = {name: statistics[name] for name in reducer.needs}
    prepared = reducer.prepare(W, [20], lrbench.Context.seeded(slot, reducer, 0, statistics=needed))
    ranks = [1, 2, 9, 20]
    for rank, loss in zip(ranks, prepared.predicted_losses(ranks, H, G), strict=True):
        assert loss == pytest.approx(predicted_loss(W - prepared.at_rank(rank).dense(), H, G), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KFAC(shrink_inputs=-0.1), "shrink_inputs"),
        (lambda: KFAC(shrink_gradients=0.0), "G is inverted"),
        (lambda: ASVD(alpha=-1.0), "alpha"),
        (lambda: Nystrom(selection="best"), "pivots or scores"),
        (lambda: CR(refit=True, sampling="random"), "refit needs sampling: top"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_only_an_instance_that_is_calibrated_needs_statistics():
    assert ID().needs == CR().needs == frozenset()
    assert ID(calibrated=True).needs == CR(refit=True).needs == CR(calibrated=True).needs == {"second_moment"}
