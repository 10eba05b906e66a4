"""A model's spectrum as a document, as CSV and as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lrbench.analysis.claims import Claim
from lrbench.analysis.spectra import NAMES, SlotSpectrum, by_group, summary
from lrbench.reports.render.document import Heading, Listing, Part, Table, TextReport, csv_text
from lrbench.reports.render.json import finite
from lrbench.reports.render.number_format import MISSING, by_reason
from lrbench.system.environment import in_words

_HEADINGS = {
    "stable_rank": "stable\nrank",
    "effective_rank": "effective\nrank",
    "effective_rank_share": "of full\nrank",
    "energy_10": "energy\nin 10 %",
    "energy_20": "energy\nin 20 %",
    "rank_90": "rank for\n90 %",
    "rank_90_share": "of full\nrank",
    "rank_99": "rank for\n99 %",
    "rank_99_share": "of full\nrank",
}
_LEGEND = (
    "Energy: the sum of squared singular values. Stable rank: ‖W‖_F² / σ₁². Effective rank: exp of the entropy of "
    "σ / Σσ (Roy and Vetterli, 2007). Full rank: min(m, n). Energy in 10 and 20 %: its fraction in the first "
    "int(0.1·min(m, n)) and int(0.2·min(m, n)) singular values. Rank for 90 and 99 %: the fewest singular values with "
    "that fraction of the energy. Random: one Gaussian matrix of the same shape, seeded by it; no figure depends on "
    "the scale."
)


@dataclass(frozen=True)
class SpectrumReport:
    """The results of `lrbench spectrum`.

    Attributes:
        model: `label`, `source`, `dtype`, `weight_hash`.
        spectra: one per weight, in the model's order.
        claims: evaluated on `spectra`.
        environment: hardware and versions, as in rows.
        left_out: (parameter, reason) for each matrix of the model that is no weight slot.
    """

    model: Mapping[str, Any]
    spectra: Sequence[SlotSpectrum]
    claims: Sequence[Claim]
    environment: dict[str, Any]
    left_out: Sequence[tuple[str, str]] = field(default_factory=tuple)


def document(report: SpectrumReport, per_slot: bool = False) -> TextReport:
    """Claims, a table by role, with `per_slot` also one by weight, and a legend."""
    count = len(report.spectra)
    title = f"Spectrum of {report.model['label']} ({report.model['dtype']}): {count} {_matrices(count)}"
    parts: list[Part] = [Heading("Claims"), Listing([_point(claim) for claim in report.claims])]
    parts += [Heading("By role"), _by_role(report)]
    if per_slot:
        before, after = _shared_ends([spectrum.weight for spectrum in report.spectra])
        parts += [Heading("Every matrix"), _every_slot(report, before, after)]
        if before or after:
            parts.append(f"All names begin with {before or 'nothing'} and end in {after or 'nothing'}.")
        parts += [Heading("Random matrices"), _random(report)]
    parts.append(_LEGEND)
    zero = sum(spectrum.figures.zero for spectrum in report.spectra)
    if zero:
        parts.append(f"{zero} {_matrices(zero)} of zeros: no spectrum, rank 0; not in the claims.")
    parts += [f"Not measured: {names}." for names in by_reason(report.left_out)]
    parts.append(f"Computed on {in_words(report.environment)}.")
    return TextReport(title, parts)


def csv(report: SpectrumReport, per_slot: bool = False) -> str:
    """One line per role and statistic; with `per_slot`, per weight, with its random matrix's figures `random:NAME`."""
    if per_slot:
        header = ["weight", "layer", "role", "rows", "columns", *NAMES, *(f"random:{name}" for name in NAMES)]
        return csv_text(
            header,
            (
                [s.weight, s.layer, s.role, *s.shape, *s.figures.values().values(), *s.random.values().values()]
                for s in report.spectra
            ),
        )
    rows = []
    for group, members in by_group(report.spectra).items():
        for statistic, values in summary(members).items():
            rows.append([group, len(members), _shapes(members), statistic, *(values[name] for name in NAMES)])
    return csv_text(["role", "count", "shapes", "statistic", *NAMES], rows)


def as_json(report: SpectrumReport) -> str:
    """`model`, `environment`, `claims`, `roles`, `slots`, `left_out`; null for missing numbers."""
    data = {
        "model": dict(report.model),
        "environment": report.environment,
        "claims": [{**asdict(claim), "verdict": claim.verdict} for claim in report.claims],
        "roles": [
            {"role": group, "count": len(members), "shapes": [list(shape) for shape in _distinct(members)],
             **summary(members)}
            for group, members in by_group(report.spectra).items()
        ],
        "slots": [
            {"weight": s.weight, "layer": s.layer, "role": s.role, "shape": list(s.shape), **s.figures.values(),
             "random": s.random.values()}
            for s in report.spectra
        ],
        "left_out": [{"weight": name, "reason": reason} for name, reason in report.left_out],
    }  # fmt: skip
    return json.dumps(finite(data), indent=2, allow_nan=False) + "\n"


def _point(claim: Claim) -> tuple[str, str, str]:
    numbers = claim.numbers[:1].upper() + claim.numbers[1:]
    return f"{claim.verdict.upper()}: {claim.statement}", f"{numbers}.", f"Criterion: {claim.criterion}."


def _by_role(report: SpectrumReport) -> Table:
    rows: list[list[str]] = []
    sections = set()
    for group, members in by_group(report.spectra).items():
        sections.add(len(rows))
        for place, (statistic, values) in enumerate(summary(members).items()):
            labels = (group, f"{len(members)} × {_shapes(members)}") if not place else ("", "")
            rows.append([*labels, statistic, *_figures(values)])
    headings = ["role", "matrices", "", *(_HEADINGS[name] for name in NAMES)]
    return Table(headings, rows, words=3, sections=frozenset(sections))


def _every_slot(report: SpectrumReport, before: str, after: str) -> Table:
    rows = [
        [s.weight.removeprefix(before).removesuffix(after), str(s.shape), *_figures(s.figures.values()),
         MISSING if s.figures.zero else f"{100 * s.against_random:.1f} %"]
        for s in report.spectra
    ]  # fmt: skip
    headings = ["weight", "shape", *(_HEADINGS[name] for name in NAMES), "eff. rank\n/ random"]
    return Table(headings, rows, words=2)


def _shared_ends(names: Sequence[str]) -> tuple[str, str]:
    """The common prefix and suffix of all names, in whole dotted parts."""
    if len(names) < 2:
        return "", ""
    parts = [name.split(".") for name in names]
    shortest = min(map(len, parts)) - 1  # one part stays

    def alike(place: int) -> bool:
        return all(len(name_parts) > shortest and name_parts[place] == parts[0][place] for name_parts in parts)

    before = next((count for count in range(shortest) if not alike(count)), shortest)
    left = shortest - before
    after = next((count for count in range(left) if not alike(-1 - count)), left)
    head, tail = parts[0][:before], parts[0][len(parts[0]) - after :]
    return "".join(f"{part}." for part in head), "".join(f".{part}" for part in tail)


def _random(report: SpectrumReport) -> Table:
    of_shape = {tuple(sorted(spectrum.shape)): spectrum.random for spectrum in report.spectra}
    rows = [[str(shape), *_figures(figures.values())] for shape, figures in sorted(of_shape.items())]
    return Table(["shape", *(_HEADINGS[name] for name in NAMES)], rows)


def _figures(values: Mapping[str, float]) -> list[str]:
    return [_text(name, values[name]) for name in NAMES]


def _text(name: str, value: float) -> str:
    if math.isnan(value):
        return MISSING
    if name.endswith("_share") or name.startswith("energy"):
        return f"{100 * value:.1f} %"
    return str(int(value)) if name.startswith("rank") and value == int(value) else f"{value:.1f}"


def _distinct(members: Sequence[SlotSpectrum]) -> list[tuple[int, int]]:
    return list(dict.fromkeys(spectrum.shape for spectrum in members))


def _shapes(members: Sequence[SlotSpectrum]) -> str:
    counts = Counter(spectrum.shape for spectrum in members)
    if len(counts) == 1:
        return str(members[0].shape)
    return ", ".join(f"{shape} ({count})" for shape, count in counts.items())


def _matrices(count: int) -> str:
    return "matrix" if count == 1 else "matrices"
