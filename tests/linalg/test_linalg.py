"""The kernels, against LAPACK through torch and scipy, and against the definitions."""

import math

import pytest
import scipy.linalg
import threadpoolctl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrbench import linalg


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def with_spectrum(m, n, sigma, seed=0):
    s = len(sigma)
    U, V = torch.linalg.qr(normal(m, s, seed=seed)).Q, torch.linalg.qr(normal(n, s, seed=seed + 1)).Q
    return (U * torch.as_tensor(sigma, dtype=torch.float64)) @ V.T


def kahan(n, c=0.285):
    """Kahan's matrix, on which QR with column pivoting finds no dependence though there is one."""
    s = math.sqrt(1 - c * c)
    return torch.diag(s ** torch.arange(n).double()) @ (torch.eye(n).double() - c * torch.ones(n, n).double().triu(1))


def projection_error(W, rows):
    """‖W − W W_I⁺ W_I‖_F by an orthonormal basis."""
    Q = torch.linalg.qr(W[rows].T).Q
    return float(torch.linalg.matrix_norm(W - (W @ Q) @ Q.T))


# Gram and spectrum


@pytest.mark.parametrize("shape", [(20, 45), (45, 20), (30, 30), (1, 9), (9, 1)])
def test_the_gram_spectrum_has_the_errors_of_the_svd(shape):
    W = normal(*shape)
    S = torch.linalg.svdvals(W)
    expected = [float(S[k:].square().sum().sqrt()) for k in range(len(S) + 1)]
    assert linalg.optimal_errors(W) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("exponent", [-1040, -700, -3, 0, 200, 600])
@pytest.mark.parametrize("shape", [(20, 45), (45, 20)])
def test_the_spectrum_of_numbers_whose_squares_are_none_is_that_of_the_same_in_range(shape, exponent):
    W = normal(*shape)
    scaled = linalg.times_power(W, exponent)
    exact = linalg.Spectrum(linalg.times_power(scaled, -exponent))  # what subnormal numbers have left of W
    spectrum = linalg.Spectrum(scaled)
    for k in range(1, min(shape)):
        assert spectrum.trusts(k)
        assert torch.allclose(spectrum.leading(k).abs(), exact.leading(k).abs(), atol=1e-6)
    back = [linalg.times_power(error, -exponent) for error in spectrum.errors()]
    assert back == pytest.approx(exact.errors(), rel=1e-3 if exponent < -1022 else 1e-12)


def test_a_matrix_is_scaled_only_where_its_squares_need_it_and_by_a_power_of_two():
    W = normal(4, 5)
    for safe in (W, W.float() * 2**-20, W.half() * 2**-20, torch.zeros(2, 2), torch.zeros(0, 3), W * 2.0**200):
        scaled, exponent = linalg.in_range(safe)
        assert scaled is safe
        assert exponent == 0
    for far in (W * 2.0**600, W * 2.0**-600, W.float() * 2.0**90, W.bfloat16() * 2.0**-90, W[:1, :1] * 0 + 5e-324):
        scaled, exponent = linalg.in_range(far)
        assert 1 <= float(scaled.abs().max()) < 2
        assert scaled.dtype == far.dtype
        assert torch.equal(linalg.times_power(scaled, exponent), far)


@pytest.mark.parametrize("shape", [(20, 45), (45, 20), (30, 30)])
@pytest.mark.parametrize("decay", [0.8, 0.3, 0.05])
def test_the_spectrum_attains_the_optimum_on_either_side_of_the_gate(shape, decay):
    sigma = decay ** torch.arange(min(shape)).double()
    W = with_spectrum(*shape, sigma)
    spectrum = linalg.Spectrum(W)
    errors = spectrum.errors()
    for k in range(1, len(sigma) + 1):
        U = spectrum.leading(k)
        torch.testing.assert_close(U.T @ U, torch.eye(k).double(), rtol=0, atol=1e-12)
        B = spectrum.coordinates(k)
        residual = W - (U @ B if spectrum.wide else B.T @ U.T)
        optimum = float(sigma[k:].square().sum().sqrt())
        assert float(torch.linalg.matrix_norm(residual)) <= optimum * 1.02 + 1e-14
        assert errors[k] == pytest.approx(optimum, rel=0.02, abs=1e-14)


def test_a_gram_alone_would_fail_below_the_gate():
    W = with_spectrum(20, 40, 0.1 ** torch.arange(20).double())
    squares = torch.linalg.eigvalsh(linalg.gram(W)).flip(0)
    naive, optimum = float(linalg.tail_errors(squares)[12]), linalg.optimal_errors(W)[12]
    assert optimum == pytest.approx(1e-12, rel=0.01)
    assert not math.isclose(naive, optimum, rel_tol=0.5)


@pytest.mark.parametrize("decay", [0.8, 0.1])
def test_a_spectrum_made_for_some_ranks_gives_the_same_there_and_refuses_larger_ones(decay):
    W = with_spectrum(10, 14, decay ** torch.arange(10).double())
    whole, part = linalg.Spectrum(W), linalg.Spectrum(W, rank=8)
    for k in (8, 5, 2):
        assert torch.equal(part.leading(k), whole.leading(k))
        assert torch.equal(part.coordinates(k), whole.coordinates(k))
    assert part.errors() == whole.errors()[:9]
    for ask in (part.leading, part.coordinates):
        with pytest.raises(ValueError, match="rank 9 is above 8, the largest rank of this spectrum"):
            ask(9)


def test_the_svd_is_made_only_if_a_rank_that_is_asked_needs_it(monkeypatch):
    W = with_spectrum(10, 14, 0.1 ** torch.arange(10).double())
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **kwargs: pytest.fail("an SVD was made"))
    assert linalg.Spectrum(W, rank=5).errors()[5] == pytest.approx(1e-5, rel=0.01)
    with pytest.raises(pytest.fail.Exception):
        linalg.Spectrum(W, rank=8)


def test_the_spectrum_of_a_weight_that_is_not_finite_is_an_error():
    W = normal(5, 6)
    W[2, 3] = math.nan
    with pytest.raises(torch.linalg.LinAlgError):
        linalg.Spectrum(W)


def test_tail_errors_never_grow_and_end_in_zero():
    errors = linalg.tail_errors(torch.tensor([9.0, 4.0, 1e-30, -1e-18]))
    assert errors[0] == pytest.approx(math.sqrt(13))
    assert errors[-1] == 0
    assert bool((errors.diff() <= 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (5, 7), (300, 2100), (40, 1), (3, 0)])
@pytest.mark.parametrize("stored", [torch.float16, torch.float32, torch.float64])
def test_a_gram_is_the_product_whatever_dtype_and_order_in_memory(shape, stored, dtype):
    W = normal(*shape).to(stored)
    tolerance = {"rtol": 1e-4, "atol": 1e-2} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-9}
    expected = (W.double() @ W.double().T).to(dtype)
    strided = torch.stack([W, -W], dim=-1)[..., 0]
    for A in (W, W.T.contiguous().T, strided):
        before = A.clone()
        G = linalg.gram(A, dtype)
        torch.testing.assert_close(G, expected, **tolerance)
        assert torch.equal(G, G.T)
        assert torch.equal(A, before)
    short = linalg.short_gram(W, dtype)
    torch.testing.assert_close(short, (expected if shape[0] <= shape[1] else linalg.gram(W.T, dtype)), **tolerance)


def test_eigenvectors_come_largest_first_in_rows_and_leave_the_matrix_alone():
    G = linalg.gram(normal(12, 20))
    before = G.clone()
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        values, rows = linalg.eigenvectors(G.to(dtype))
        assert values.dtype == rows.dtype == dtype
        assert bool((values.diff() <= 0).all())
        torch.testing.assert_close(rows @ rows.T, torch.eye(12, dtype=dtype), rtol=0, atol=tolerance)
        torch.testing.assert_close((rows.T * values) @ rows, G.to(dtype), rtol=0, atol=tolerance * float(values[0]))
    assert torch.equal(G, before)
    with pytest.raises(torch.linalg.LinAlgError, match="NaN or Inf"):
        linalg.eigenvectors(torch.full((3, 3), math.inf))


def test_scipys_libraries_keep_to_torchs_threads_and_are_left_as_they_were():
    def openblas():
        return [p["num_threads"] for p in threadpoolctl.threadpool_info() if p["internal_api"] == "openblas"]

    linalg.gram(normal(3, 3))
    before, threads = openblas(), torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with linalg.lapack._libraries(2000):
                assert set(openblas()) == {count}
    finally:
        torch.set_num_threads(threads)
    assert openblas() == before


def test_what_is_shared_of_a_spectrum_is_its_parts():
    W, asked = with_spectrum(10, 14, 0.1 ** torch.arange(10).double()), []

    def once(make, *arguments):
        asked.append(make.__name__)
        return make(*arguments)

    assert linalg.Spectrum(W, rank=4, once=once).trusts(4)
    assert asked == ["short_gram", "eigenvectors"]
    assert not linalg.Spectrum(W, once=once).trusts(9)
    assert asked[2:] == ["short_gram", "eigenvectors", "exact_vectors"]


# Pivoted Cholesky


def reference_pivots(G, rank):
    """Greedy pivots by the definition: the largest diagonal of the Schur complement, one step after another."""
    S, pivots, traces = G.clone(), [], [float(G.trace())]
    for _ in range(rank):
        p = int(S.diagonal().argmax())
        S = S - torch.outer(S[:, p], S[:, p]) / S[p, p]
        S[p] = 0
        S[:, p] = 0
        pivots.append(p)
        traces.append(float(S.trace()))
    return pivots, traces


@pytest.mark.parametrize("algorithm", ["lapack", 1, 3, 64])
@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_pivoted_cholesky_follows_the_definition_whatever_its_algorithm(size, algorithm):
    G = linalg.gram(normal(size, size + 5) * torch.arange(1, size + 1)[:, None])
    pivots, traces = reference_pivots(G, size)
    options = {"algorithm": "blocked", "block": algorithm} if isinstance(algorithm, int) else {"algorithm": algorithm}
    found = linalg.pivoted_cholesky(G, size, **options)
    few = linalg.pivoted_cholesky(G, (size + 1) // 2, **options)
    assert few.pivots.tolist() == pivots[: (size + 1) // 2]
    torch.testing.assert_close(few.factor, found.factor[: len(few.factor)])
    assert found.pivots.tolist() == pivots
    torch.testing.assert_close(
        found.traces, torch.tensor(traces, dtype=torch.float64).clamp(min=0), rtol=1e-8, atol=1e-9 * traces[0]
    )
    torch.testing.assert_close(found.factor.T @ found.factor, G, rtol=1e-10, atol=1e-10 * float(G.abs().max()))


def test_pivoted_cholesky_agrees_with_lapack_dpstrf():
    G = linalg.gram(normal(50, 60) * (1 + torch.arange(50))[:, None])
    factor, pivots, rank, info = scipy.linalg.lapack.dpstrf(G.numpy(), lower=1)
    found = linalg.pivoted_cholesky(G, 50, algorithm="blocked", block=16)
    assert (rank, info) == (50, 0)
    assert found.pivots.tolist() == [p - 1 for p in pivots.tolist()]
    lower = torch.from_numpy(factor).tril()
    torch.testing.assert_close(found.factor[:, found.pivots].T.tril(), lower, rtol=1e-9, atol=1e-9 * float(lower.max()))


@pytest.mark.parametrize("algorithm", ["lapack", "blocked"])
def test_pivoted_cholesky_stops_at_the_rank_of_its_matrix(algorithm):
    found = linalg.pivoted_cholesky(linalg.gram(normal(30, 4)), 30, algorithm=algorithm, block=8)
    assert len(found.pivots) == 4
    assert float(found.traces[-1]) <= 1e-10 * float(found.traces[0])


@pytest.mark.parametrize("algorithm", ["lapack", "blocked"])
def test_pivoted_cholesky_stops_at_the_floor_and_leaves_its_argument_alone(algorithm):
    G = linalg.gram(with_spectrum(30, 40, 0.5 ** torch.arange(30).double()))
    before = G.clone()
    found = linalg.pivoted_cholesky(G, 30, floor=1e-4, algorithm=algorithm, block=5)
    assert torch.equal(G, before)
    assert float(found.traces[-1]) <= 1e-4 * float(found.traces[0]) < float(found.traces[-2])


@pytest.mark.parametrize("algorithm", ["lapack", "blocked"])
def test_pivoted_cholesky_of_zeros_chooses_nothing(algorithm):
    assert len(linalg.pivoted_cholesky(torch.zeros(5, 5).double(), 5, algorithm=algorithm).pivots) == 0


def test_a_small_rank_of_a_large_gram_is_not_factorized_to_the_end():
    assert linalg.cholesky.faster_algorithm(torch.empty(1024, 1024), 100) == "blocked"
    assert linalg.cholesky.faster_algorithm(torch.empty(1024, 1024), 400) == "lapack"


# Greedy rows


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (30, 30)])
def test_greedy_rows_are_those_of_lapack_qr_with_column_pivoting(shape):
    W = normal(*shape) * torch.linspace(1, 4, shape[0])[:, None]
    _, pivots = scipy.linalg.qr(W.T.numpy(), mode="r", pivoting=True)
    assert linalg.greedy_rows(W, min(shape)).order.tolist() == pivots[: min(shape)].tolist()
    assert linalg.cpqr_pivots(W.T, 5).tolist() == pivots[:5].tolist()
    given_gram = linalg.greedy_rows(W, min(shape), linalg.gram(W))
    assert given_gram.order.tolist() == pivots[: min(shape)].tolist()
    assert linalg.greedy_rows(W, 5).algorithm == ("lapack" if shape[0] <= shape[1] else "rows")


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (30, 30)])
@pytest.mark.parametrize("decay", [0.9, 0.4, 0.1])
def test_greedy_rows_know_their_error_on_either_side_of_the_gate(shape, decay):
    W = with_spectrum(*shape, decay ** torch.arange(min(shape)).double())
    pivots = linalg.greedy_rows(W, min(shape))
    assert sorted(set(pivots.order.tolist())) == sorted(pivots.order.tolist())
    for k in range(1, min(shape)):
        assert pivots.errors[k] == pytest.approx(projection_error(W, pivots.order[:k]), rel=0.02, abs=1e-14)


def test_greedy_rows_reach_the_rounding_of_float64():
    W = with_spectrum(30, 50, 0.1 ** torch.arange(30).double())
    pivots, S = linalg.greedy_rows(W, 14), torch.linalg.svdvals(W)
    assert projection_error(W, pivots.order) <= 50 * float(S[14:].square().sum().sqrt()) + 1e-15


def test_greedy_rows_past_the_rank_are_still_different_rows():
    W = normal(9, 3) @ normal(3, 12)
    assert sorted(linalg.greedy_rows(W, 9).order.tolist()) == list(range(9))
    assert linalg.greedy_rows(torch.zeros(4, 6), 3).order.tolist() == [0, 1, 2]


def test_coefficients_of_the_gram_are_the_least_squares_ones():
    W = normal(20, 35) * torch.linspace(1, 5, 20)[:, None]
    pivots = linalg.greedy_rows(W, 8)
    others = torch.tensor([i for i in range(20) if i not in pivots.order.tolist()])
    expected = torch.linalg.lstsq(W[pivots.order].T, W[others].T).solution.T
    torch.testing.assert_close(pivots.coefficients(8, others), expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(
        linalg.RowRefit(W, pivots.order).coefficients(8, others), expected, rtol=1e-9, atol=1e-10
    )


def test_the_gram_refuses_coefficients_where_it_cannot_be_trusted():
    W = with_spectrum(20, 30, 0.1 ** torch.arange(20).double())
    pivots = linalg.greedy_rows(W, 12)
    assert 5 <= pivots.trusted < 12
    others = torch.tensor([i for i in range(20) if i not in pivots.order.tolist()])
    assert pivots.coefficients(pivots.trusted, others).shape == (8, pivots.trusted)
    with pytest.raises(ValueError, match="use RowRefit"):
        pivots.coefficients(12, others)


def test_the_kahan_matrix_keeps_the_order_of_its_columns_and_the_bound_of_pivoted_qr():
    K = kahan(40)
    K = K * (1 - 1e-10) ** torch.arange(40).double()  # ties between columns would be broken by rounding
    order = linalg.cpqr_pivots(K, 39)
    assert order.tolist() == list(range(39))
    S = torch.linalg.svdvals(K)
    spectral = float(torch.linalg.matrix_norm(K - _projected(K, order), 2))
    assert spectral > 50 * float(S[39])  # the greedy choice is known to fail here ...
    assert spectral <= 2.0**39 * float(S[39])  # ... within its exponential bound


def _projected(W, columns):
    Q = torch.linalg.qr(W[:, columns]).Q
    return Q @ (Q.T @ W)


# Other pivots


def deim(U):
    """DEIM by its definition: interpolate the next vector at the points so far, take the largest residual."""
    points = [int(U[:, 0].abs().argmax())]
    for j in range(1, U.shape[1]):
        c = torch.linalg.solve(U[points, :j], U[points, j])
        points.append(int((U[:, j] - U[:, :j] @ c).abs().argmax()))
    return points


def test_lupp_on_singular_vectors_gives_the_deim_points():
    U = torch.linalg.qr(normal(40, 12)).Q
    assert linalg.lupp_pivots(U, 12).tolist() == deim(U)


def test_lupp_pivots_are_nested_in_the_columns_of_the_sketch():
    Y = normal(30, 10)
    assert linalg.lupp_pivots(Y[:, :4], 4).tolist() == linalg.lupp_pivots(Y, 10).tolist()[:4]


def test_lupp_takes_a_singular_sketch():
    Y = normal(9, 2) @ normal(2, 6)
    assert len(set(linalg.lupp_pivots(Y, 6).tolist())) == 6
    assert len(set(linalg.lupp_pivots(torch.zeros(5, 3), 3).tolist())) == 3


def test_leverage_scores_are_probabilities_and_rows_of_weight_zero_come_last():
    U = torch.linalg.qr(normal(20, 4)).Q
    assert float(linalg.leverage_scores(U).sum()) == pytest.approx(1)
    weights = torch.tensor([0.0, 1.0, 0.0, 2.0])
    drawn = linalg.weighted_sample(weights, torch.rand(4, generator=generator()), 4)
    assert set(drawn[:2].tolist()) == {1, 3}


def test_a_weighted_sample_takes_its_first_in_proportion_to_the_weights():
    weights, trials = torch.tensor([1.0, 2.0, 5.0]).double(), 4000
    uniforms = torch.rand(trials, 3, generator=generator(), dtype=torch.float64)
    firsts = torch.tensor([int(linalg.weighted_sample(weights, u, 1)) for u in uniforms])
    p = weights / weights.sum()
    error = (firsts.bincount(minlength=3) / trials - p).abs()
    assert bool((error <= 4 * (p * (1 - p) / trials).sqrt()).all())


# Sketches


@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_the_columns_of_a_sketch_do_not_depend_on_how_many_are_drawn(size, few, more):
    like = torch.zeros(1)
    narrow = linalg.gaussian(size, min(few, more), generator(5), like)
    wide = linalg.gaussian(size, max(few, more), generator(5), like)
    assert torch.equal(narrow, wide[:, : min(few, more)])


def test_a_sketch_is_the_same_in_every_dtype_and_normal():
    small = linalg.gaussian(64, 100, generator(1), torch.zeros(1))
    assert torch.equal(small.double(), linalg.gaussian(64, 100, generator(1), torch.zeros(1).double()))
    assert abs(float(small.mean())) < 4 / 80
    assert float(small.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / 6400))


def test_the_range_finder_meets_the_bound_of_halko_martinsson_and_tropp():
    k, p = 6, 4
    W = with_spectrum(40, 60, torch.arange(1, 41).double() ** -0.8)
    squares = []
    for seed in range(30):
        Q = linalg.range_finder(W, k + p, 0, generator(seed))
        squares.append(float(torch.linalg.matrix_norm(W - Q @ (Q.T @ W))))
    bound = math.sqrt(1 + k / (p - 1)) * linalg.optimal_errors(W)[k]  # theorem 10.5, on the mean
    assert sum(squares) / 30 <= bound


def test_power_iterations_bring_the_range_nearer_to_the_optimum():
    W = with_spectrum(40, 60, torch.arange(1, 41).double() ** -0.5)
    errors = []
    for power in (0, 1, 2, 4):
        Q = linalg.range_finder(W, 10, power, generator(1))
        torch.testing.assert_close(Q.T @ Q, torch.eye(10).double(), atol=1e-12, rtol=0)
        errors.append(float(torch.linalg.matrix_norm(W - Q @ (Q.T @ W))))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] <= 1.02 * linalg.optimal_errors(W)[10]


def test_the_first_columns_of_a_range_are_the_range_of_a_narrower_sketch():
    W = with_spectrum(30, 50, torch.arange(1, 31).double() ** -0.5)
    wide = linalg.range_finder(W, 12, 2, generator(2))[:, :5]
    narrow = linalg.range_finder(W, 5, 2, generator(2))
    torch.testing.assert_close(wide @ wide.T, narrow @ narrow.T, atol=1e-10, rtol=0)


def test_full_precision_puts_the_setting_back_even_after_an_error():
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(KeyError, match="highest"), linalg.full_precision():
            raise KeyError(torch.get_float32_matmul_precision())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("shape", [(30, 30), (30, 50)])
@pytest.mark.parametrize("power", [0, 1, 3])
def test_a_gram_finds_the_range_that_products_with_the_weight_find(shape, power):
    W = with_spectrum(*shape, torch.arange(1, 31).double() ** -0.7)
    Q = linalg.range_finder(W, 9, power, generator(4))
    by_gram = linalg.range_finder(W, 9, power, generator(4), linalg.gram(W))
    torch.testing.assert_close(by_gram @ by_gram.T, Q @ Q.T, atol=1e-9, rtol=0)


def test_a_gram_pays_for_wide_matrices_and_many_columns():
    assert linalg.gram_pays((1024, 4096), 520, 2)
    assert not linalg.gram_pays((1024, 4096), 60, 2)
    assert not linalg.gram_pays((4096, 4096), 100, 2)


# Refits


def test_a_refit_leaves_a_residual_orthogonal_to_the_skeleton():
    W, order = normal(12, 30), torch.tensor([3, 7, 1, 11])
    refit = linalg.RowRefit(W, order)
    for k in (1, 2, 4):
        residual = W - refit.coefficients(k, torch.arange(12)) @ W[order[:k]]
        assert refit.errors()[k] == pytest.approx(float(residual.norm()), rel=1e-12)
        assert float((residual @ W[order[:k]].T).abs().max()) <= 1e-12


@pytest.mark.parametrize("W", [torch.ones(6, 9), torch.zeros(6, 9), normal(6, 2) @ normal(2, 9)])
def test_a_refit_on_dependent_rows_is_finite_and_exact(W):
    refit = linalg.RowRefit(W, torch.tensor([0, 1, 2, 3]))
    T = refit.coefficients(4, torch.arange(6))
    assert bool(T.isfinite().all())
    torch.testing.assert_close(T @ W[:4].double(), W.double(), atol=1e-9, rtol=0)


def test_a_refit_takes_more_rows_than_there_are_columns():
    W = normal(9, 3)
    T = linalg.RowRefit(W, torch.arange(5)).coefficients(5, torch.arange(9))
    torch.testing.assert_close(T @ W[:5], W, atol=1e-10, rtol=0)


def test_solving_a_singular_triangle_gives_the_solution_of_least_norm():
    R = torch.tensor([[2.0, 1.0], [0.0, 0.0]]).double()
    X = linalg.solve_upper(R, torch.tensor([[5.0], [0.0]]).double(), 1e-12)
    torch.testing.assert_close(X, torch.tensor([[2.0], [1.0]]).double())


def test_the_core_is_c_pseudoinverse_w_r_pseudoinverse_at_every_rank():
    W, columns, rows = normal(12, 15), torch.tensor([4, 0, 9, 2]), torch.tensor([7, 3, 1, 10])
    core = linalg.Core(W, columns, rows)
    for k in (1, 3, 4):
        C, R = W[:, columns[:k]], W[rows[:k]]
        torch.testing.assert_close(core.at_rank(k), torch.linalg.pinv(C) @ W @ torch.linalg.pinv(R), atol=1e-10, rtol=0)
        assert core.error(k) == pytest.approx(float((W - C @ core.at_rank(k) @ R).norm()), rel=1e-9)


def test_the_core_in_float32_survives_a_rank_deficient_weight():
    W = (normal(30, 3) @ normal(3, 40)).float()
    columns, rows = torch.arange(12), torch.arange(12)
    U = linalg.Core(W, columns, rows).at_rank(12)
    error = torch.linalg.matrix_norm(W - W[:, columns] @ U @ W[rows]) / torch.linalg.matrix_norm(W)
    assert float(error) < 1e-3
