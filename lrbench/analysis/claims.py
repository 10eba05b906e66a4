"""Tests common claims about the spectra of trained weights on one model."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lrbench.analysis.spectra import SlotSpectrum, by_group
from lrbench.suite.roles import ATTENTION

#: The claim `low-effective-rank`: the fraction of a random matrix's effective rank up to which a rank counts as low.
LOW = 0.5
_QKV = ATTENTION[:3]


@dataclass(frozen=True)
class Claim:
    """One claim and its answer.

    Attributes:
        name: for JSON and CSV.
        statement: the claim as usually stated.
        criterion: the exact condition for the answer yes.
        answer: None if the measured weights cannot decide; `numbers` then names the reason.
        numbers: the figures as text.
        values: the figures as data.
    """

    name: str
    statement: str
    criterion: str
    answer: bool | None
    numbers: str
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """`yes`, `no` or `cannot be told`."""
        return "cannot be told" if self.answer is None else "yes" if self.answer else "no"


def claims(spectra: Sequence[SlotSpectrum]) -> tuple[Claim, ...]:
    """Evaluates all claims on these weights, without zero matrices, which have no spectrum."""
    known = [spectrum for spectrum in spectra if not spectrum.figures.zero]
    of_full_rank = _lowest(
        known,
        "qkv-lowest",
        "Q, K and V are the matrices of the lowest effective rank.",
        "effective rank over min(m, n), mean over a role's matrices",
        {spectrum.weight: spectrum.figures.effective_rank / spectrum.figures.size for spectrum in known},
    )
    against_random = _lowest(
        known,
        "qkv-lowest-against-random",
        "Q, K and V are the matrices of the lowest effective rank, each against a random matrix of its shape.",
        "effective rank over that of the random matrix of the same shape, mean over a role's matrices",
        {spectrum.weight: spectrum.against_random for spectrum in known},
    )
    return _energy(known), of_full_rank, against_random, _low_rank(known)


def _energy(spectra: Sequence[SlotSpectrum]) -> Claim:
    name = "top-20-holds-90"
    statement = "The top 10–20 % of the singular values hold 90 % of the energy."
    criterion = (
        "yes where in at least half of the matrices the first int(0.2·min(m, n)) singular values hold at least 90 % "
        "of Σσ²"
    )
    if not spectra:
        return Claim(name, statement, criterion, None, "there is no matrix with a spectrum")
    count = len(spectra)
    at_20 = sum(spectrum.figures.rank_90 <= _top(spectrum, 0.2) for spectrum in spectra)
    at_10 = sum(spectrum.figures.rank_90 <= _top(spectrum, 0.1) for spectrum in spectra)
    held = [spectrum.figures.energy_20 for spectrum in spectra]
    first = [spectrum.figures.energy_10 for spectrum in spectra]
    random = statistics.fmean(spectrum.random.energy_20 for spectrum in spectra)
    needed = [spectrum.figures.rank_90 / spectrum.figures.size for spectrum in spectra]
    numbers = (
        f"the top 20 % do so in {at_20} of {count} matrices, the top 10 % in {at_10}; the top 20 % hold "
        f"{_spread(held)} of the energy (of random matrices {_percent(random)}), the top 10 % {_spread(first)}; 90 % "
        f"of it takes {_spread(needed)} of the singular values"
    )
    values = {
        "matrices": count, "matrices_at_20": at_20, "matrices_at_10": at_10, "energy_20_mean": statistics.fmean(held),
        "energy_20_random": random, "energy_10_mean": statistics.fmean(first),
        "rank_90_share_mean": statistics.fmean(needed), "rank_90_share_min": min(needed),
        "rank_90_share_max": max(needed),
    }  # fmt: skip
    return Claim(name, statement, criterion, 2 * at_20 >= count, numbers, values)


def _lowest(
    spectra: Sequence[SlotSpectrum], name: str, statement: str, quantity: str, figure: Mapping[str, float]
) -> Claim:
    """Whether `figure` (by weight) is lower for each of Q, K and V than for every other role."""
    criterion = f"yes where the {quantity}, is lower for each of {', '.join(_QKV)} than for every other role"
    means = {
        role: statistics.fmean(figure[spectrum.weight] for spectrum in group)
        for role, group in by_group(s for s in spectra if s.role is not None).items()
    }
    missing = [role for role in _QKV if role not in means]
    if missing:
        return Claim(name, statement, criterion, None, f"no matrix of role {', '.join(missing)} was measured")
    if len(means) == len(_QKV):
        return Claim(name, statement, criterion, None, "no matrix of another role was measured")
    answer = max(means[role] for role in _QKV) < min(mean for role, mean in means.items() if role not in _QKV)
    ascending = sorted(means.items(), key=lambda item: item[1])
    numbers = "ascending: " + ", ".join(f"{role} {_percent(mean)}" for role, mean in ascending)
    return Claim(name, statement, criterion, answer, numbers, means)


def _low_rank(spectra: Sequence[SlotSpectrum]) -> Claim:
    name = "low-effective-rank"
    statement = "Trained weights are of low effective rank."
    criterion = (
        f"yes where in at least half of the matrices the effective rank is at most {LOW:g} of that of the random "
        "matrix of the same shape"
    )
    if not spectra:
        return Claim(name, statement, criterion, None, "there is no matrix with a spectrum")
    ratios = [spectrum.against_random for spectrum in spectra]
    low, below, count = sum(ratio <= LOW for ratio in ratios), sum(ratio < 1 for ratio in ratios), len(ratios)
    numbers = (
        f"so low in {low} of {count} matrices, lower than random in {below}; the effective rank is {_spread(ratios)} "
        f"of the random one, in the median {_percent(statistics.median(ratios))}"
    )
    values = {
        "matrices": count, "matrices_low": low, "matrices_below_random": below, "ratio_mean": statistics.fmean(ratios),
        "ratio_median": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
    }  # fmt: skip
    return Claim(name, statement, criterion, 2 * low >= count, numbers, values)


def _top(spectrum: SlotSpectrum, fraction: float) -> int:
    return max(int(spectrum.figures.size * fraction), 1)


def _spread(fractions: Sequence[float]) -> str:
    """`45.1 % on average (31.0–60.2)`."""
    low, high = (f"{100 * value:.1f}" for value in (min(fractions), max(fractions)))
    return f"{_percent(statistics.fmean(fractions))} on average ({low}–{high})"


def _percent(fraction: float) -> str:
    return "—" if math.isnan(fraction) else f"{100 * fraction:.1f} %"
