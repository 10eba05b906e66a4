"""Figures of singular values (stable rank, effective rank, energy), compared with random matrices of the same shape.

Energy is the sum of squared singular values, ‖W‖_F². All figures are invariant to the scale of W.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrbench.errors import ModelError
from lrbench.linalg import GATE, gram, tail_errors
from lrbench.models.slots import WeightSlot
from lrbench.suite.roles import ROLES

#: Where energy curves are sampled: fractions of min(m, n).
GRID = tuple(index / 200 for index in range(201))

# Tolerance of rank_90 and rank_99: nine of ten equal squares hold 90 % despite rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Figures:
    """Figures of one matrix's singular values; for a zero matrix, ranks are 0 and ratios NaN.

    Attributes:
        size: min(m, n).
        stable_rank: ‖W‖_F² / σ₁².
        effective_rank: exp(−Σ p ln p) with p = σ / Σσ, the singular values (not their squares) normalised to sum to
            one (Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007).
        energy_10, energy_20: fraction of the energy in the first int(0.1 size) and int(0.2 size) singular values, at
            least one.
        rank_90, rank_99: the smallest k whose first k singular values hold 90 and 99 % of the energy.
    """

    size: int
    stable_rank: float
    effective_rank: float
    energy_10: float
    energy_20: float
    rank_90: int
    rank_99: int

    def values(self) -> dict[str, float]:
        """All figures by name; `_share` marks ranks divided by `size`."""
        return {
            "stable_rank": self.stable_rank,
            "effective_rank": self.effective_rank,
            "effective_rank_share": self.effective_rank / self.size,
            "energy_10": self.energy_10,
            "energy_20": self.energy_20,
            "rank_90": self.rank_90,
            "rank_90_share": self.rank_90 / self.size,
            "rank_99": self.rank_99,
            "rank_99_share": self.rank_99 / self.size,
        }

    @property
    def zero(self) -> bool:
        """Whether the matrix is zero."""
        return math.isnan(self.stable_rank)


#: The names of `Figures.values()`.
NAMES = (
    *("stable_rank", "effective_rank", "effective_rank_share", "energy_10", "energy_20"),
    *("rank_90", "rank_90_share", "rank_99", "rank_99_share"),
)


@dataclass(frozen=True)
class SlotSpectrum:
    """The spectrum of one weight and of a random matrix of the same shape.

    Attributes:
        weight, layer, role, shape: the slot's.
        group: the role; without one, the parameter's name with `*` for the layer's number.
        figures: of the weight.
        random: of the Gaussian matrix of the same shape.
        curve: fraction of the energy in the first fraction x of the singular values, for x in `GRID`; linear between
            whole ranks. None for a zero matrix.
        random_curve: the same for the random matrix.
    """

    weight: str
    layer: int | None
    role: str | None
    group: str
    shape: tuple[int, int]
    figures: Figures
    random: Figures
    curve: tuple[float, ...] | None
    random_curve: tuple[float, ...]

    @property
    def against_random(self) -> float:
        """Effective rank over that of the random matrix."""
        return self.figures.effective_rank / self.random.effective_rank


def singular_values(W: Tensor) -> Tensor:
    """All singular values of W (m, n), descending: (min(m, n),) float64, on the device of W.

    Computed from the eigenvalues of the float64 Gram matrix of the shorter side if its relative tails are above `GATE`,
    else by an SVD in float64.

    Raises:
        torch.linalg.LinAlgError: W holds NaN or Inf.
    """
    short = (W if W.shape[0] <= W.shape[1] else W.T).double()  # (s, l)
    largest = short.abs().amax()
    if not float(largest):
        return short.new_zeros(len(short))
    short = short / largest  # avoids over- and underflow of squares
    squares = torch.linalg.eigvalsh(gram(short)).flip(0).clamp(min=0)  # (s,)
    tails = tail_errors(squares)
    if float(tails[-2]) >= GATE * float(tails[0]):
        return squares.sqrt() * largest
    driver = "gesvd" if short.is_cuda else None  # the default on CUDA, Jacobi, is less exact in the tail
    return torch.linalg.svdvals(short, driver=driver) * largest


def figures_of(values: Tensor) -> Figures:
    """The figures of a matrix with these singular values.

    Args:
        values: (s,) descending, not negative, s at least 1.
    """
    sigma = values.detach().double().cpu().numpy()
    size = len(sigma)
    if not sigma[0]:
        return Figures(size, math.nan, math.nan, math.nan, math.nan, 0, 0)
    sigma = sigma / sigma[0]  # avoids over- and underflow of squares
    fractions = np.cumsum(sigma**2)
    energy = float(fractions[-1])
    fractions = fractions / energy
    p = sigma[sigma > 0] / sigma.sum()

    def held(fraction: float) -> float:
        return float(fractions[max(int(size * fraction), 1) - 1])

    def rank_for(fraction: float) -> int:
        return int((fractions < fraction * (1 - _ROUNDING)).sum()) + 1

    return Figures(
        size=size,
        stable_rank=energy,
        effective_rank=float(np.exp(-(p * np.log(p)).sum())),
        energy_10=held(0.1),
        energy_20=held(0.2),
        rank_90=rank_for(0.9),
        rank_99=rank_for(0.99),
    )


def energy_curve(values: Tensor) -> tuple[float, ...] | None:
    """Fraction of the energy in the first fraction x of the singular values, x in `GRID`; None for a zero matrix."""
    sigma = values.detach().double().cpu().numpy()
    if not sigma[0]:
        return None
    held = np.concatenate([[0.0], np.cumsum((sigma / sigma[0]) ** 2)])
    return tuple(np.interp(GRID, np.linspace(0, 1, len(held)), held / held[-1]).tolist())


def random_singular_values(shape: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Singular values of an (m, n) matrix of independent N(0, 1) entries: (min(m, n),) descending, float64, on CPU.

    One cached draw per shape, seeded by it; (m, n) and (n, m) share it. Draws the bidiagonal matrix of χ variables
    whose singular values have the distribution of a Gaussian matrix's (Silverstein 1985; Dumitriu and Edelman 2002,
    arXiv math-ph/0206043), of size min(m, n).

    Args:
        device: where eigenvalues are computed.
    """
    return _random(min(shape), max(shape), str(device))


@functools.lru_cache(maxsize=256)
def _random(short: int, long: int, device: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(f"gaussian {short} x {long}".encode()).digest()[:8], "big")
    generator = np.random.default_rng(seed)
    B = np.zeros((short, short))
    B[np.diag_indices(short)] = np.sqrt(generator.chisquare(long - np.arange(short)))
    if short > 1:
        below = np.arange(1, short)
        B[below, below - 1] = np.sqrt(generator.chisquare(short - below))
    return singular_values(torch.from_numpy(B).to(device)).cpu()


def measure(slot: WeightSlot) -> SlotSpectrum:
    """The spectrum of one slot's current weight, computed on its device.

    Raises:
        ModelError: the weight holds NaN or Inf.
    """
    weight = slot.read()  # (out, in)
    if not bool(weight.isfinite().all()):
        row, column = (~weight.isfinite()).nonzero()[0].tolist()
        value = float(weight[row, column])
        raise ModelError(f"{slot.name}: the weight holds {value} at [{row}, {column}]; repair the checkpoint")
    values = singular_values(weight)
    reference = random_singular_values(slot.about.shape, weight.device)
    random_curve = energy_curve(reference)
    assert random_curve is not None
    return SlotSpectrum(
        weight=slot.name,
        layer=slot.about.layer,
        role=slot.about.role,
        group=slot.about.role or _pattern(slot.name, slot.about.layer),
        shape=slot.about.shape,
        figures=figures_of(values),
        random=figures_of(reference),
        curve=energy_curve(values),
        random_curve=random_curve,
    )


def by_group(spectra: Iterable[SlotSpectrum]) -> dict[str, list[SlotSpectrum]]:
    """Spectra by group: roles in their usual order, then other groups in the model's order."""
    groups: dict[str, list[SlotSpectrum]] = {}
    for spectrum in spectra:
        groups.setdefault(spectrum.group, []).append(spectrum)
    order = {role: place for place, role in enumerate(ROLES)}
    return dict(sorted(groups.items(), key=lambda item: order.get(item[0], len(order))))


#: Summary statistics over several matrices.
STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: sum(values) / len(values),
    "min": min,
    "max": max,
}


def summary(spectra: Sequence[SlotSpectrum]) -> dict[str, dict[str, float]]:
    """`mean`, `min` and `max` of each figure over the weights, and `random`, its mean over the random matrices.

    Ignores NaN of zero matrices; NaN if no matrix has the figure.
    """
    weights = [spectrum.figures.values() for spectrum in spectra]
    references = [spectrum.random.values() for spectrum in spectra]
    table = {
        statistic: {name: _over(function, [values[name] for values in weights]) for name in NAMES}
        for statistic, function in STATISTICS.items()
    }
    mean = STATISTICS["mean"]
    return table | {"random": {name: _over(mean, [values[name] for values in references]) for name in NAMES}}


def _over(function: Callable[[Sequence[float]], float], values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(function(known)) if known else math.nan


def _pattern(name: str, layer: int | None) -> str:
    """`transformer.h.3.attn.c_attn.weight` of layer 3 -> `transformer.h.*.attn.c_attn.weight`."""
    return name if layer is None else re.sub(rf"(^|\.){layer}(?=\.)", r"\1*", name, count=1)
