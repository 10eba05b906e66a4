"""Spectra: the figures of singular values, random matrices, and a model's weights."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from lrbench.analysis.spectra import (
    GRID,
    NAMES,
    by_group,
    energy_curve,
    figures_of,
    measure,
    random_singular_values,
    singular_values,
    summary,
)
from lrbench.errors import ModelError
from lrbench.linalg import optimal_errors
from lrbench.models.load import load
from lrbench.models.slot_search import find_slots
from lrbench.models.slots import WeightSlot
from lrbench.reducers.base import Slot
from lrbench.reducers.testing.matrices import kinds, odd
from lrbench.reduction.single_matrix import slot_of
from lrbench.suite.load import ModelSpec
from tests.support.tiny_models import tiny


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("name", list(kinds()))
@pytest.mark.parametrize("transposed", [False, True])
def test_singular_values_are_scipys(name, transposed):
    W = kinds()[name].T if transposed else kinds()[name]
    expected = scipy.linalg.svdvals(W.numpy())
    assert np.allclose(singular_values(W), expected, rtol=1e-9, atol=1e-12 * expected[0])


@pytest.mark.parametrize(("name", "W"), list(odd()))
def test_singular_values_of_odd_matrices_are_scipys(name, W):
    values = singular_values(W).numpy()
    assert values.shape == (min(W.shape),)
    expected = scipy.linalg.svdvals(W.double().numpy())
    assert np.allclose(values, expected, rtol=1e-9, atol=1e-13 * max(expected[0], 1e-300))


def test_singular_values_far_below_the_gate_come_from_an_svd():
    U, V = torch.linalg.qr(normal(30, 30)).Q, torch.linalg.qr(normal(50, 30, seed=1)).Q
    sigma = 10.0 ** -torch.arange(30, dtype=torch.float64).mul(0.4)  # down to 2.5e-12
    assert torch.allclose(singular_values((U * sigma) @ V.T), sigma, rtol=1e-3, atol=1e-16)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_no_square_over_or_underflows(scale):
    W = normal(6, 9)
    assert torch.allclose(singular_values(W * scale) / scale, singular_values(W), rtol=1e-12)
    ours, theirs = figures_of(singular_values(W * scale)).values(), figures_of(singular_values(W)).values()
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("shape", [(40, 40), (20, 70), (70, 20)])
def test_figures_are_those_of_the_definitions_by_numpy(shape):
    W = normal(*shape)
    figures, sigma, size = figures_of(singular_values(W)), np.linalg.svd(W.numpy(), compute_uv=False), min(shape)
    energy = sigma**2 / (sigma**2).sum()
    assert figures.size == size
    assert figures.stable_rank == pytest.approx(np.linalg.norm(W) ** 2 / np.linalg.norm(W.numpy(), 2) ** 2)
    assert figures.effective_rank == pytest.approx(math.exp(scipy.stats.entropy(sigma)))  # entropy() normalises the sum
    assert figures.energy_10 == pytest.approx(energy[: size // 10].sum())
    assert figures.energy_20 == pytest.approx(energy[: size // 5].sum())
    for share, rank in ((0.9, figures.rank_90), (0.99, figures.rank_99)):
        assert energy[:rank].sum() >= share > energy[: rank - 1].sum()
    assert list(figures.values()) == list(NAMES)
    assert figures.values()["rank_99_share"] == figures.rank_99 / size


def test_known_spectra_give_known_figures():
    equal = figures_of(singular_values(torch.eye(10, 25) * 3))
    assert equal.stable_rank == pytest.approx(10)
    assert equal.effective_rank == pytest.approx(10)
    assert (equal.energy_10, equal.energy_20) == (pytest.approx(0.1), pytest.approx(0.2))
    assert (equal.rank_90, equal.rank_99) == (9, 10)  # nine of ten equal ones are 90 %, but for rounding
    two = figures_of(torch.tensor([3.0, 1.0] + [0.0] * 18, dtype=torch.float64))
    assert two.stable_rank == pytest.approx(10 / 9)
    assert two.effective_rank == pytest.approx(4 / 3**0.75)  # exp of the entropy of (3/4, 1/4)
    assert (two.rank_90, two.rank_99) == (1, 2)
    assert (two.energy_10, two.energy_20) == (1, 1)


def test_a_rank_one_matrix_has_all_ranks_one():
    figures = figures_of(singular_values(normal(12, 1) @ normal(1, 30, seed=1)))
    assert figures.stable_rank == pytest.approx(1)
    assert figures.effective_rank == pytest.approx(1, abs=1e-6)
    assert (figures.rank_90, figures.rank_99, figures.energy_10) == (1, 1, pytest.approx(1))


def test_a_zero_matrix_has_ranks_zero_and_no_ratios():
    figures = figures_of(singular_values(torch.zeros(4, 7)))
    assert figures.zero
    assert (figures.rank_90, figures.rank_99) == (0, 0)
    assert all(math.isnan(figures.values()[name]) for name in ("stable_rank", "effective_rank", "energy_10"))
    assert energy_curve(torch.zeros(4)) is None


def test_figures_do_not_depend_on_scale_orientation_or_orthogonal_factors():
    W, Q = normal(15, 33), torch.linalg.qr(normal(15, 15, seed=2)).Q
    plain = figures_of(singular_values(W)).values()
    for other in (W * -7, W.T, Q @ W):
        assert figures_of(singular_values(other)).values() == pytest.approx(plain)


def test_the_curve_passes_through_the_energy_at_every_whole_rank():
    sigma = singular_values(normal(20, 30))
    curve, energy = energy_curve(sigma), sigma.square().cumsum(0) / sigma.square().sum()
    assert (curve[0], curve[-1]) == (0, pytest.approx(1))
    for k in range(1, 21):
        assert curve[GRID.index(k / 20)] == pytest.approx(float(energy[k - 1]))
    assert all(later >= earlier for earlier, later in itertools.pairwise(curve))


def test_energy_agrees_with_the_optimal_errors_of_the_kernels():
    W = normal(20, 30)
    errors = optimal_errors(W)
    assert figures_of(singular_values(W)).energy_20 == pytest.approx(1 - (errors[4] / errors[0]) ** 2)


@pytest.mark.parametrize("shape", [(30, 30), (16, 80), (1, 5), (5, 1), (1, 1)])
def test_the_random_matrix_is_drawn_like_a_gaussian_one(shape, monkeypatch):
    """The mean of many draws of the bidiagonal form is that of plain Gaussian matrices, value by value."""
    from lrbench.analysis import spectra

    random, seeds = np.random.default_rng(5), iter(range(10**6))
    plain = np.array([scipy.linalg.svdvals(random.standard_normal(shape)) for _ in range(400)])
    spectra._random.cache_clear()
    generator = np.random.default_rng
    monkeypatch.setattr(spectra.np.random, "default_rng", lambda _: generator(next(seeds)))
    drawn = []
    for _ in range(400):
        spectra._random.cache_clear()
        drawn.append(random_singular_values(shape).numpy())
    monkeypatch.undo()
    spectra._random.cache_clear()
    spread = np.hypot(plain.std(0), np.std(drawn, 0)) / 20
    assert (abs(plain.mean(0) - np.mean(drawn, 0)) < 5 * spread).all()


def test_one_random_matrix_a_shape_always_the_same():
    first = random_singular_values((24, 40))
    from lrbench.analysis import spectra

    spectra._random.cache_clear()
    assert torch.equal(random_singular_values((24, 40)), first)
    assert random_singular_values((24, 40)) is random_singular_values((40, 24))
    assert not torch.allclose(random_singular_values((24, 41)), first)
    state = np.random.get_state()[1].tolist()
    random_singular_values((9, 9))
    assert np.random.get_state()[1].tolist() == state


def test_a_large_gaussian_matrix_has_the_energy_of_its_random_one():
    figures = figures_of(singular_values(normal(150, 300))).values()
    assert figures == pytest.approx(figures_of(random_singular_values((150, 300))).values(), rel=0.06)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_slot_is_measured_in_float64_whatever_its_dtype(dtype):
    W = normal(12, 30).to(dtype)
    spectrum = measure(slot_of(W, "w"))
    assert spectrum.figures.values() == pytest.approx(figures_of(singular_values(W.double())).values(), rel=1e-12)
    assert spectrum.random == figures_of(random_singular_values((12, 30)))
    assert spectrum.against_random == spectrum.figures.effective_rank / spectrum.random.effective_rank


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_named(bad):
    W = torch.ones(3, 4)
    W[1, 2] = bad
    with pytest.raises(ModelError, match=rf"w: the weight holds {bad} at \[1, 2\]"):
        measure(slot_of(W, "w"))


def test_groups_are_roles_in_order_then_names_without_the_layer():
    def spectrum(name, layer, role):
        matrix = slot_of(normal(4, 6), name)
        return measure(WeightSlot(Slot(name, layer, role, (4, 6)), matrix.module))

    spectra = [
        spectrum("h.0.attn.c_attn.weight", 0, None), spectrum("h.0.down.weight", 0, "mlp.down"),
        spectrum("h.0.q.weight", 0, "attn.q"), spectrum("h.10.attn.c_attn.weight", 10, None),
        spectrum("other.1.weight", None, None),
    ]  # fmt: skip
    groups = by_group(spectra)
    assert list(groups) == ["attn.q", "mlp.down", "h.*.attn.c_attn.weight", "other.1.weight"]
    assert [s.layer for s in groups["h.*.attn.c_attn.weight"]] == [0, 10]


def test_a_summary_is_over_the_layers_and_leaves_zeros_out():
    spectra = [measure(slot_of(W, "w")) for W in (normal(10, 20), normal(10, 20, seed=1), torch.zeros(10, 20))]
    stable = [s.figures.stable_rank for s in spectra[:2]]
    table = summary(spectra)
    assert list(table) == ["mean", "min", "max", "random"]
    assert [table[s]["stable_rank"] for s in ("mean", "min", "max")] == [sum(stable) / 2, min(stable), max(stable)]
    assert table["random"]["stable_rank"] == pytest.approx(spectra[0].random.stable_rank)
    assert math.isnan(summary(spectra[2:])["mean"]["stable_rank"])
    assert table["min"]["rank_90"] == 0


def test_every_matrix_of_almanac_is_measured_as_numpy_measures_it():
    slots = load(ModelSpec(name="almanac"), "cpu").inventory.slots
    for slot in slots[:7]:
        figures, sigma = measure(slot).figures, np.linalg.svd(slot.read().double().numpy(), compute_uv=False)
        assert figures.stable_rank == pytest.approx((sigma**2).sum() / sigma[0] ** 2)
        assert figures.effective_rank == pytest.approx(math.exp(scipy.stats.entropy(sigma)))


def test_transposed_and_fused_weights_are_measured_as_the_slots_that_they_are():
    slots = find_slots(tiny("gpt2")).slots
    spectra = [measure(slot) for slot in slots if slot.about.layer is not None]
    assert all(s.shape == slot.about.shape for s, slot in zip(spectra, slots, strict=False))
    assert {"attn.o", "mlp.up", "mlp.down"} <= set(by_group(spectra))
