"""Claims about trained weights, on spectra made to fulfil them and not to."""

import pytest
import torch

from lrbench.analysis.claims import LOW, claims
from lrbench.analysis.spectra import measure
from lrbench.models.slots import WeightSlot
from lrbench.reducers.base import Slot
from lrbench.reduction.single_matrix import slot_of

SIZE = 40


def spectrum(sigma, role="mlp.up", layer=0, shape=None):
    """The spectrum of a matrix with these singular values, the others zero."""
    rows, columns = shape or (SIZE, SIZE)
    W = torch.zeros(rows, columns, dtype=torch.float64)
    W[range(len(sigma)), range(len(sigma))] = torch.tensor(sigma, dtype=torch.float64)
    name = f"layers.{layer}.{role}.weight"
    return measure(WeightSlot(Slot(name, layer, role, (rows, columns)), slot_of(W, name).module))


def flat(rank=SIZE, **about):
    return spectrum([1.0] * rank, **about)


def answers(spectra):
    return {claim.name: claim for claim in claims(spectra)}


def with_roles(low, high, **changed):
    """One matrix of each role; Q, K and V of rank `low`, the others of rank `high`."""
    ranks = dict.fromkeys(("attn.q", "attn.k", "attn.v"), low) | {"attn.o": high, "mlp.up": high, "mlp.down": high}
    return [flat(rank, role=role) for role, rank in (ranks | changed).items()]


@pytest.mark.parametrize(
    ("ranks", "answer", "at_20", "at_10"),
    [
        ([8, 8], True, 2, 0),  # the top 20 % of 40 are 8
        ([9, 9], False, 0, 0),  # 8 of 9 equal ones are 89 %
        ([4, 40], True, 1, 1),  # half of the matrices are enough
        ([4, 40, 40], False, 1, 1),
        ([4], True, 1, 1),
        ([5], True, 1, 0),
    ],
)
def test_the_energy_claim_is_yes_where_it_holds_for_half_of_the_matrices(ranks, answer, at_20, at_10):
    claim = answers([flat(rank, layer=layer) for layer, rank in enumerate(ranks)])["top-20-holds-90"]
    assert claim.answer is answer
    assert claim.verdict == ("yes" if answer else "no")
    assert (claim.values["matrices_at_20"], claim.values["matrices_at_10"]) == (at_20, at_10)
    assert f"in {at_20} of {len(ranks)} matrices" in claim.numbers


def test_the_energy_claim_is_no_of_random_matrices():
    random = torch.randn(60, 90, generator=torch.Generator().manual_seed(0))
    assert answers([measure(slot_of(random, "w"))])["top-20-holds-90"].answer is False


def test_q_k_and_v_are_the_lowest_only_where_each_is_lower_than_every_other_role():
    assert answers(with_roles(10, 30))["qkv-lowest"].answer is True
    assert answers(with_roles(30, 10))["qkv-lowest"].answer is False
    assert answers(with_roles(10, 30, **{"attn.v": 31}))["qkv-lowest"].answer is False  # one of three is not
    assert answers(with_roles(10, 30, **{"mlp.up": 9}))["qkv-lowest"].answer is False
    assert answers(with_roles(20, 20))["qkv-lowest"].answer is False  # equal is not lower


def test_roles_are_compared_by_their_means_over_the_layers():
    spectra = [*with_roles(10, 30), flat(38, role="attn.q", layer=1), flat(38, role="attn.o", layer=1)]
    claim = answers(spectra)["qkv-lowest"]
    assert claim.values["attn.q"] == pytest.approx(24 / SIZE)
    assert claim.answer is True


def test_a_lower_share_that_only_comes_from_the_shape_is_no_finding():
    """Square Gaussian matrices have a lower effective rank than wide ones: the second reading sees that."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"attn.q": (80, 80), "attn.k": (80, 80), "attn.v": (80, 80), "mlp.up": (80, 320), "mlp.down": (80, 320)}
    spectra = []
    for layer in range(4):
        for role, shape in shapes.items():
            W = torch.randn(shape, generator=generator)
            name = f"{role}.{layer}"
            spectra.append(measure(WeightSlot(Slot(name, layer, role, shape), slot_of(W, name).module)))
    found = answers(spectra)
    assert found["qkv-lowest"].answer is True
    assert found["low-effective-rank"].answer is False
    values = found["qkv-lowest-against-random"].values
    assert all(value == pytest.approx(1, abs=0.02) for value in values.values())


@pytest.mark.parametrize(
    ("spectra", "why"),
    [
        ([flat(4, role="mlp.up")], "attn.q, attn.k, attn.v"),
        (with_roles(10, 30)[:2] + with_roles(10, 30)[3:], "no matrix of role attn.v"),
        (with_roles(10, 30)[:3], "no matrix of another role"),
    ],
)
def test_a_claim_about_roles_that_were_not_measured_cannot_be_told(spectra, why):
    for name in ("qkv-lowest", "qkv-lowest-against-random"):
        claim = answers(spectra)[name]
        assert claim.answer is None
        assert claim.verdict == "cannot be told"
        assert why in claim.numbers


def test_low_rank_is_half_of_the_random_one_for_half_of_the_matrices():
    reference = flat().random.effective_rank
    limit = int(LOW * reference)
    for ranks, answer, low in (([limit, limit + 1], True, 1), ([limit + 1, limit + 1], False, 0), ([limit], True, 1)):
        claim = answers([flat(rank, layer=layer) for layer, rank in enumerate(ranks)])["low-effective-rank"]
        assert claim.answer is answer
        assert claim.values["matrices_low"] == low
        assert claim.values["ratio_max"] == pytest.approx(max(ranks) / reference)
    claim = answers([flat()])["low-effective-rank"]
    assert (claim.values["matrices_below_random"], claim.answer) == (0, False)


def test_zero_matrices_do_not_count_and_nothing_else_is_no_answer():
    with_zero = answers([flat(4), spectrum([], layer=1)])
    assert with_zero["top-20-holds-90"].values["matrices"] == 1
    assert with_zero["low-effective-rank"].values["matrices"] == 1
    assert all(claim.answer is None for claim in claims([spectrum([])]))
    assert all(claim.answer is None for claim in claims([]))


def test_every_claim_states_its_criterion_and_its_numbers():
    for claim in claims(with_roles(10, 30)):
        assert claim.criterion.startswith("yes where ")
        assert any(char.isdigit() for char in claim.numbers)
        assert all(isinstance(value, int | float) for value in claim.values.values())
