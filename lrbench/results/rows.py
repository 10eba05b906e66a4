"""The records of a run: rows, with their edits, scores and speeds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from lrbench.system.text import is_plain

#: Counts, ranks, seeds, bytes: whole numbers that a float can be made of.
Whole = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**63)]
Number = float | Annotated[int, Field(gt=-(2**63), lt=2**63)]


class Strict(BaseModel):
    """A record that refuses keys it does not know, and writes infinities as JSON's readers take them back."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


class Score(Strict):
    """One metric of one task, over `n` documents."""

    value: float
    stderr: float | None = None
    n: Whole


class Speed(Strict):
    """One model at one batch size.

    Attributes:
        prefill_tokens_per_second: of the prompts, all at once, with the logits of the last position.
        decode_tokens_per_second: of the tokens after them, one at a time with the cache; None for a model without.
        peak_bytes: the weights as they run, and what lives beside them at the most.
    """

    prefill_tokens_per_second: float
    decode_tokens_per_second: float | None
    peak_bytes: Whole


class AtBatch(Strict):
    """The baseline and the one with factors, measured in turns; the baseline's row has no `factored`."""

    batch: Whole
    dense: Speed
    factored: Speed | None = None


class InferenceSpeed(Strict):
    """What `measure: inference` found, by a fixed protocol.

    Attributes:
        prompt_tokens: of each prompt.
        new_tokens: decoded after each.
        repeats: of which the median counts.
        factored_weights: how many of the edited weights ran as factors; the others ran as matrices.
        batches: one entry for each batch size.
        reason: why some are missing.
    """

    prompt_tokens: Whole
    new_tokens: Whole
    repeats: Whole
    factored_weights: Whole = 0
    batches: list[AtBatch] = Field(default_factory=list)
    reason: str | None = None

    def ratio(self, what: str, batch: int) -> float | None:
        """Factored over dense of one figure of `Speed`; None where it was not measured, or nothing ran as factors."""
        for entry in self.batches if self.factored_weights else ():
            if entry.batch == batch and entry.factored is not None:
                ours, theirs = getattr(entry.factored, what), getattr(entry.dense, what)
                return ours / theirs if ours is not None and theirs else None
        return None


def _of_a_file(cell: str) -> str:
    if not is_plain(cell):
        raise ValueError("a cell's hash names a file: letters, digits, '.', '_', '-'; 128 at most")
    return cell


class Edit(Strict):
    """One reduced weight of a cell."""

    weight: str
    layer: Whole | None
    role: str | None
    shape: tuple[Size, Size]  # (out, in)
    rank: Whole
    stored_numbers: Whole
    stored_bytes: Whole
    stored_as: Literal["factors", "dense"]
    relative_error: float  # |W - What|_F / |W|_F, after rounding to the model's dtype; of updates, see Row.delta
    # the Eckart-Young optimum of the same rank, before rounding; None where the rank is not that of the whole matrix
    optimal_error: float | None
    # |(W - What) H^½|_F / |W H^½|_F and its least for the rank, with H = E[x x^T]; of methods that were given H
    output_error: float | None = None
    optimal_output_error: float | None = None
    chosen: dict[str, Any] = Field(default_factory=dict)  # what the reducer chose for itself; see Prepared.chosen
    evaluated_as: Literal["dense", "factors"] = "dense"  # how it ran when it was scored
    # the rank that an allocation asked of it, `whole` where it was left as it is; None where the row's request says
    allocated: int | Literal["whole"] | None = None


class Decision(Strict):
    """One step of a composition: the best edit of a block, and whether it was kept."""

    cell: str  # the row on validation documents, of all that was accepted before with this edit on top
    weight: str
    accepted: bool


class Selection(Strict):
    """What a row is to a choice: one of those chosen from, or what is reported, on which documents."""

    split: Literal["validation", "test"]
    documents: dict[str, int]  # that the row is scored on, by task
    chosen_for: str | None = None  # the task or group, or `mean`; of edited models on test
    candidates: int | None = None  # among how many it was chosen, failed ones counted
    validated_on: dict[str, int] | None = None  # on how many documents, by task
    validation_cells: list[str] | None = None  # the rows by which it was chosen, one a seed
    predicted: dict[str, float] | None = None  # by screening, for each choice: change of log-loss, nats a document
    decisions: list[Decision] | None = None  # of a composition, in the order in which they were taken
    stopped: dict[str, int] | None = None  # in a race, by task: after how many documents, where not after all

    @property
    def share(self) -> str:
        """Names the documents in the manifest: `validation`, `test`, or `test/TASK`."""
        return self.split if self.chosen_for is None else f"{self.split}/{self.chosen_for}"


class Row(Strict):
    """What one cell was, cost and scored. `DESIGN` words: keep, cell, edit; differences are made by the tables."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    cell: Annotated[str, AfterValidator(_of_a_file)]  # also names the file of its samples
    status: Literal["ok", "failed", "skipped"]
    reason: str | None = None
    environment: str
    suite: str
    model: str
    reducer: str | None = None  # None: the baseline
    label: str | None = None
    delta: str | None = None  # the base, where the run reduces updates: W is W - W_base, keep_model on top of the base
    params: dict[str, Any] = Field(default_factory=dict)
    mode: str | None = None
    requested: dict[str, Number] = Field(default_factory=dict)
    allocation: str | None = None  # how the numbers of keep_model were shared out
    seed: Whole = 0
    edits: list[Edit] = Field(default_factory=list)
    keep_targets: float | None = None
    keep_model: float | None = None
    compression_ratio: float | None = None
    calibrate_seconds: float = 0.0
    decompose_seconds: float = 0.0
    allocate_seconds: float = 0.0  # what finding the ranks took, beyond decompose_seconds
    evaluate_seconds: float = 0.0
    scores: dict[str, dict[str, Score]] = Field(default_factory=dict)
    inference: InferenceSpeed | None = None  # where the suite measures it
    selection: Selection | None = None  # where the suite chooses

    model_config = ConfigDict(extra="forbid", populate_by_name=True, ser_json_inf_nan="constants")

    @property
    def method(self) -> str | None:
        """What the tables call it: its label, with how numbers were shared out; None for the baseline."""
        name = self.label or self.reducer
        return f"{name}, {self.allocation}" if name and self.allocation else name

    @property
    def setting(self) -> str:
        """What was asked of the ranks, in words: `keep 0.5`; empty for the baseline, `composed` for many."""
        if self.mode == "greedy" and not self.requested:
            return "composed"
        return ", ".join(f"{kind} {value:g}" for kind, value in self.requested.items())
