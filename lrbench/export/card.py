"""The model card of an export: the edited weights, their sizes, errors and scores, and how to load the model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import yaml
from huggingface_hub import ModelCardData, metadata_load

from lrbench._version import __version__
from lrbench.analysis.edit_summary import describe, ranks, relative_error
from lrbench.export.description import Description
from lrbench.export.exported_model import ExportedModel
from lrbench.reports.render.markdown import escape
from lrbench.results.rows import Edit, Row
from lrbench.system.environment import in_words
from lrbench.system.text import clean, printable

LOAD_DENSE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")
```"""

LOAD_FACTORED = """```python
import lrbench
from transformers import AutoTokenizer

model = lrbench.load("DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")
```

Layers run on their factors; `lrbench.json` describes what is stored and how. `AutoModelForCausalLM.from_pretrained`
cannot read this layout: there is no `model.safetensors`."""

#: Loads an export whose description is `plain`; DIR is its folder.
LOAD_PLAIN = """```python
import json
from pathlib import Path

from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

folder = Path("DIR")
about = json.loads((folder / "lrbench.json").read_text())
state = {name: tensor for file in folder.glob("factored*.safetensors") for name, tensor in load_file(file).items()}
config = AutoConfig.from_pretrained(folder)
model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
for path in (weight["module"] for weight in about["weights"]):
    first, second = state[f"{path}.0.weight"], state[f"{path}.1.weight"]  # (k, in), (out, k)
    pair = nn.Sequential(
        nn.Linear(first.shape[1], first.shape[0], bias=False),
        nn.Linear(second.shape[1], second.shape[0], bias=f"{path}.1.bias" in state),
    )
    model.set_submodule(path, pair)
state |= {name: state[other] for name, other in about["ties"].items()}
model.load_state_dict(state, assign=True)
model.tie_weights()
model.eval()
```"""

LOAD_ADAPTER = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE"), "DIR")
```

The adapter holds the difference from the base model, and requires it."""


def card(exported: ExportedModel, form: str, description: Description | None = None) -> str:
    """The card in Markdown, with the front matter that the Hugging Face hub reads.

    Args:
        form: `dense`, `factored` or `lora`.
        description: of a factored export.
    """
    edits, row = exported.edits, exported.row
    method = row.method if row is not None else None
    title = f"{exported.base}, {method or 'reduced'}{f', {row.setting}' if row is not None else ''}"
    parts = [
        _front_matter(exported, form),
        f"# {escape(title)}",
        f"`{_plain(exported.base)}` with {_edited_weights(exported)} replaced by a "
        f"decomposition ({escape(describe(edits, len(exported.inventory.blocks)))}), "
        f"made by lrbench {__version__}.",
        _stored(exported),
        "## What it scored" if row is not None and row.scores else "",
        _scores(exported),
        "## What was edited",
        _summary(exported),
        _edits(edits),
        "## How to load it",
        {"dense": LOAD_DENSE, "factored": LOAD_FACTORED, "lora": LOAD_ADAPTER}[form].replace(
            '"BASE"', json.dumps(_plain(exported.delta.name if exported.delta else exported.base))
        ),
        _storage_notes(description),
        "## How it was made",
        _provenance(exported),
        "## Licence",
        _licence(exported),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _edited_weights(exported: ExportedModel) -> str:
    plural = "s" if len(exported.edits) != 1 else ""
    if exported.delta is None:
        return f"{len(exported.edits)} weight{plural}"
    return f"the update{plural} of {len(exported.edits)} weight{plural} from `{_plain(exported.delta.name)}`"


def _stored(exported: ExportedModel) -> str:
    if exported.stored is None:
        return ""
    return (
        f"The baseline's matrices are stored as {escape(exported.stored)} in a GGUF file. They were dequantized to "
        f"{str(exported.model.dtype).removeprefix('torch.')} before anything was edited, and count as dense parameters."
    )


def _front_matter(exported: ExportedModel, form: str) -> str:
    delta = exported.delta if form == "lora" else None
    name, folder = (delta.name, delta.folder) if delta else (exported.base, exported.base_folder)
    licence = _licence_of(exported)[0]
    data = ModelCardData(
        library_name="peft" if form == "lora" else "transformers",
        base_model=clean(name) if folder is None else None,
        license=clean(licence) if licence else None,
        tags=["lrbench", "low-rank"],
    )
    return f"---\n{data.to_yaml()}\n---"


def _scores(exported: ExportedModel) -> str:
    if exported.row is None:
        return "It was not scored."
    lines = ["| task | metric | value | standard error | documents |", "|---|---|--:|--:|--:|"]
    for task, scores in exported.row.scores.items():
        for metric, score in scores.items():
            stderr = "" if score.stderr is None else f"{score.stderr:.4g}"
            lines.append(f"| {_cell(task)} | {_cell(metric)} | {score.value:.6g} | {stderr} | {score.n} |")
    inference = "through the factors" if any(e.evaluated_as == "factors" for e in exported.row.edits) else "as matrices"
    return (
        "\n".join(lines)
        + f"\n\nScores are lm-eval's, with the edited weights run {inference}.{_documents(exported.row)}"
    )


def _documents(row: Row) -> str:
    """The documents that were scored, if the suite has `select`."""
    selection = row.selection
    if selection is None:
        return ""
    if selection.chosen_for is None:
        return " They are of the validation documents; the best of many cells looks better there than it is."
    chosen = f"{selection.candidates} cells on {sum((selection.validated_on or {}).values())} other documents"
    return (
        f" They are of the tasks' {selection.split} documents; the cell was chosen for {_cell(selection.chosen_for)}, "
        f"among {chosen}."
    )


def _summary(exported: ExportedModel) -> str:
    row, edits = exported.row, exported.edits
    error = relative_error(edits)
    lines = [f"- ranks: {ranks(edits)}"]
    if error is not None:
        formula = "‖Δ − Δ̂‖ / ‖Δ‖, Δ = W − W_base," if exported.delta else "‖W − Ŵ‖ / ‖W‖"
        lines.append(f"- relative error {formula} over all edited weights: {error:.4g}")
    if row is not None:
        method = f"`{_plain(row.reducer or '')}`"
        settings = ", ".join(f"{escape(key)} = {escape(str(value))}" for key, value in row.params.items())
        method += f" ({settings})" if settings else ""
        lines.insert(0, f"- method: {method}; requested: {escape(row.setting)}; seed {row.seed}")
        if row.keep_targets is not None and row.keep_model is not None:
            whole = "the model, on top of the base" if exported.delta else "the model"
            lines.append(f"- parameters kept: {row.keep_targets:.4g} of these weights, {row.keep_model:.4g} of {whole}")
        lines.append(f"- decomposition: {row.decompose_seconds:.3g} s")
    return "\n".join(lines)


def _edits(edits: Sequence[Edit]) -> str:
    lines = ["| weight | shape | rank | parameters | relative error | least possible |", "|---|---|--:|--:|--:|--:|"]
    for edit in edits:
        shape = f"{edit.shape[0]} × {edit.shape[1]}"
        lines.append(
            f"| {_cell(edit.weight)} | {shape} | {edit.rank} | {edit.stored_numbers} | {edit.relative_error:.4g} | "
            f"{'—' if edit.optimal_error is None else f'{edit.optimal_error:.4g}'} |"
        )
    return "\n".join(lines)


def _storage_notes(description: Description | None) -> str:
    if description is None:
        return ""
    multiplied = [weight.weight for weight in description.weights if weight.runs_as == "matrix" and weight.edited]
    notes = []
    if description.plain and description.weights:
        notes.append("Each edited layer is two linear layers, one after the other; without lrbench:\n\n" + LOAD_PLAIN)
    if multiplied:
        notes.append(f"Stored as factors, and multiplied out when loaded: {_listed(multiplied)}.")
    if description.matrices:
        notes.append(f"Stored in full: {_listed(description.matrices)}.")
    return "\n\n".join(notes)


def _listed(weights: Sequence[str]) -> str:
    shown = ", ".join(map(_cell, weights[:3]))
    return shown if len(weights) <= 3 else f"{shown} and {len(weights) - 3} more, listed in `lrbench.json`"


def _provenance(exported: ExportedModel) -> str:
    lines = []
    if exported.made:
        lines.append(f"    {_plain(exported.made)}")
    if exported.row is not None:
        lines.append(f"Cell `{exported.row.cell}` of suite `{_plain(exported.row.suite)}`.")
    if exported.environment:
        lines.append(f"Scored on {escape(in_words(dict(exported.environment)))}.")
    if exported.suite:
        text = yaml.safe_dump(_without_empty(dict(exported.suite)), sort_keys=False, allow_unicode=True, width=100)
        lines.append("The suite:\n\n" + "\n".join(f"    {printable(line)}" for line in text.split("\n")))
    return "\n\n".join(lines)


def _without_empty(data: Any) -> Any:
    """Removes keys that are null or empty lists, which stand for defaults."""
    if isinstance(data, dict):
        return {key: _without_empty(value) for key, value in data.items() if value is not None and value != []}
    return [_without_empty(value) for value in data] if isinstance(data, list) else data


def _licence(exported: ExportedModel) -> str:
    licence, place = _licence_of(exported)
    known = f" (`{_plain(licence)}` according to its {place})" if licence else ""
    return f"A work derived from `{_plain(exported.base)}`: that model's licence applies{known}."


def _licence_of(exported: ExportedModel) -> tuple[str | None, str]:
    """The licence that the baseline's own card names, else its GGUF file; and which of the two."""
    folder = exported.base_folder
    try:
        data = metadata_load(folder / "README.md") if folder is not None else None
    except (OSError, ValueError, yaml.YAMLError):
        data = None
    licence = (data or {}).get("license")
    return (licence, "card") if isinstance(licence, str) else (exported.license, "GGUF file")


def _plain(text: object) -> str:
    """A name from a model, task or plugin, on one line and without characters that end a code span or begin markup."""
    return clean(re.sub(r"[`<>]+", " ", str(text)))


def _cell(text: object) -> str:
    return f"`{_plain(text)}`".replace("|", "\\|")
