"""`lrbench spectrum MODEL`: ranks and energies of a model's weights compared with random ones, and claims."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench.cli import output
from lrbench.errors import InputError, ModelError
from lrbench.system.text import did_you_mean

if TYPE_CHECKING:
    from lrbench.analysis.spectra import SlotSpectrum
    from lrbench.models.load import LoadedModel
    from lrbench.models.slots import WeightSlot
    from lrbench.suite.layers import Layers
    from lrbench.suite.load import ModelSpec


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "spectrum", help="stable rank, effective rank and energy of a model's weights, compared with random matrices",
        description="Stable rank, effective rank, energy in the top 10 and 20 % of the singular values, and the rank "
        "for 90 and 99 % of the energy of every weight, compared with a random matrix of the same shape; and whether "
        "common claims about trained weights hold for this model.",
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help="a bundled model, a checkpoint folder, a GGUF file, or a hub id")
    parser.add_argument("--revision", metavar="R", help="of a hub id")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: the checkpoint's")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: the GPU where there is one)")
    parser.add_argument(
        "--weights", metavar="W", nargs="+",
        help="roles, groups, or globs on parameter names (default: every matrix of the decoder blocks)",
    )  # fmt: skip
    parser.add_argument("--layers", metavar="L", default="all", help='all, 3, -1, 4-7, "last third" ... (default: all)')
    parser.add_argument("--per-slot", action="store_true", help="also one line per matrix (JSON always has them)")
    output.add_options(parser)
    parser.add_argument(
        "--figure", metavar="FILE", type=Path, help="energy curves, as .svg, .png, .pdf or .html (offline)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures the spectra and writes the table and the figure."""
    from lrbench.analysis.claims import claims
    from lrbench.models.load import load
    from lrbench.reports import figures
    from lrbench.reports.render import spectrum as render
    from lrbench.system.environment import environment

    output.check(args.output)
    if args.figure is not None:
        output.check(args.figure, "--figure")
        figures.check(args.figure)
    layers = _layers(args.layers)
    spec = model_spec(args.model, args.revision, args.dtype)
    model = load(spec, args.device, lambda message: output.say(message, sys.stderr))
    spectra = _measured(_chosen(model, layers, args.weights))
    if args.figure is not None and all(spectrum.figures.zero for spectrum in spectra):
        raise InputError("--figure: every matrix is zero and has no curve to draw")
    about = {
        "label": model.label, "source": model.source, "dtype": str(model.dtype).removeprefix("torch."),
        "weight_hash": model.weight_hash,
    }  # fmt: skip
    report = render.SpectrumReport(
        about, spectra, claims(spectra), environment(model.device), left_out=model.inventory.left_out
    )
    if args.figure is not None:
        from lrbench.reports.figures import energy

        figures.save(energy.chart(spectra, model.label), args.figure)
    output.emit(
        args,
        lambda: render.document(report, args.per_slot),
        {"csv": lambda: render.csv(report, args.per_slot), "json": lambda: render.as_json(report)},
    )
    return 0


def model_spec(name: str, revision: str | None, dtype: str | None) -> ModelSpec:
    """The suite entry for MODEL: a bundled name, a folder, a GGUF file, or a hub id.

    Raises:
        ModelError: a revision of a bundled model, or a misspelt bundled name.
    """
    from lrbench.models.load import bundled
    from lrbench.suite.load import ModelSpec

    if not name:
        raise ModelError("MODEL is empty; give a bundled model, a checkpoint folder, a GGUF file, or a hub id")
    known = bundled()
    if name in known:
        if revision is not None:
            raise ModelError(f"--revision: {name} is bundled and has no revisions")
        return ModelSpec(name=name, dtype=dtype or "auto")  # type: ignore[arg-type]
    if name.endswith(".gguf"):
        if revision is not None:
            raise ModelError(f"--revision: {name} is a file and has no revisions")
        return ModelSpec(gguf=name, dtype=dtype or "auto")  # type: ignore[arg-type]
    hint = did_you_mean(name, known) if "/" not in name and not Path(name).exists() else ""
    if hint:
        raise ModelError(f"no folder and no bundled model {name!r}{hint}")
    return ModelSpec(pretrained=name, revision=revision, dtype=dtype or "auto")  # type: ignore[arg-type]


def _layers(text: str) -> Layers:
    """The layers that the command line names. Raises InputError if the text is none of the forms."""
    from lrbench.suite.layers import Layers
    from lrbench.suite.yaml_reader import parse_yaml

    try:
        return Layers.parse(parse_yaml(text, "--layers", in_file=False).data)
    except ValueError as error:
        raise InputError(f"--layers: {error}") from None


def _chosen(model: LoadedModel, layers: Layers, weights: Sequence[str] | None) -> list[WeightSlot]:
    inventory = model.inventory
    try:
        indices = layers.resolve(len(inventory.blocks))
    except ValueError as error:
        raise InputError(f"--layers: {error}") from None
    if weights is None:
        chosen = [slot for slot in inventory.slots if slot.about.layer in indices]
        if not chosen:
            raise ModelError(f"{model.label}: no matrix that can be measured in layers {layers.spelled()!r}")
        return chosen
    try:
        return inventory.select(indices, weights)
    except ModelError as error:
        raise ModelError(f"--weights: {error}") from None


def _measured(slots: Sequence[WeightSlot]) -> list[SlotSpectrum]:
    from rich.console import Console
    from rich.progress import track

    from lrbench.analysis.spectra import measure

    console = Console(stderr=True)
    shown = track(slots, "singular values", console=console, transient=True, disable=not console.is_terminal)
    return [measure(slot) for slot in shown]
