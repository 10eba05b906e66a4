"""The records of a run: rows, with their edits, scores and speeds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from lrbench.system.text import is_plain

#: Counts, ranks, seeds, bytes: whole numbers that convert to a float.
Whole = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**63)]
Number = float | Annotated[int, Field(gt=-(2**63), lt=2**63)]


class Strict(BaseModel):
    """A record that refuses unknown keys, and writes NaN and infinities as Python's JSON constants."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


class Score(Strict):
    """One metric of one task, over `n` documents."""

    value: float
    stderr: float | None = None
    n: Whole


class Speed(Strict):
    """The speed and memory of one model at one batch size.

    Attributes:
        prefill_tokens_per_second: prompt tokens in one forward pass, with the logits of the last position.
        decode_tokens_per_second: new tokens, one at a time with the key-value cache; None for a model without a cache.
        peak_bytes: the peak memory, weights included.
    """

    prefill_tokens_per_second: float
    decode_tokens_per_second: float | None
    peak_bytes: Whole


class AtBatch(Strict):
    """The dense and the factored model, measured alternately; the baseline's row has no `factored`."""

    batch: Whole
    dense: Speed
    factored: Speed | None = None


class InferenceSpeed(Strict):
    """The measurements of `measure: inference`.

    Attributes:
        prompt_tokens: tokens of each prompt.
        new_tokens: tokens decoded after each prompt.
        repeats: repetitions, of which the median is reported.
        factored_weights: edited weights that ran as factors; the others ran as matrices.
        batches: one entry per batch size.
        reason: why some batch sizes are missing.
    """

    prompt_tokens: Whole
    new_tokens: Whole
    repeats: Whole
    factored_weights: Whole = 0
    batches: list[AtBatch] = Field(default_factory=list)
    reason: str | None = None

    def ratio(self, what: str, batch: int) -> float | None:
        """Factored over dense, for one field of `Speed`; None if it was not measured, or no weight ran as factors."""
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
    relative_error: float  # |W - What|_F / |W|_F, after rounding to the model's dtype; for updates, see Row.delta
    # the Eckart-Young optimum at this rank, before rounding; None if the rank is not the rank of the whole matrix
    optimal_error: float | None
    # |(W - What) H^½|_F / |W H^½|_F and its optimum at this rank, H = E[x x^T]; for methods that use H
    output_error: float | None = None
    optimal_output_error: float | None = None
    # ½ tr(G Δ H Δᵀ), Δ = W - What and G = E[g g^T] of the loss's gradients in the output, in nats per token of the
    # calibration text; None if the moments are unknown
    predicted_loss: float | None = None
    chosen: dict[str, Any] = Field(default_factory=dict)  # parameters that the reducer chose; see Prepared.chosen
    evaluated_as: Literal["dense", "factors"] = "dense"  # how the weight ran while it was scored
    # the rank chosen by an allocation, `whole` if the weight was left unreduced; None without an allocation
    allocated: int | Literal["whole"] | None = None


class AllocationTrial(Strict):
    """The allocations that `allocation: loss` tried on a held-out part of the calibration text.

    Attributes:
        chosen: the name of the allocation that lost least.
        tokens: of the held-out text.
        baseline: the baseline's loss there, in nats per token.
        losses: the loss that the model with each allocation adds to it, by name.
        failed: why an allocation has no loss, by name.
        seconds: of the passes, and of building the other allocations' factors; part of `allocate_seconds`.
    """

    chosen: str
    tokens: Whole
    baseline: float
    losses: dict[str, float]
    failed: dict[str, str] = {}
    seconds: float


class Decision(Strict):
    """One step of a composition: the best edit of a block, and whether it was kept."""

    cell: str  # scored on validation documents: the edits accepted before, and this one
    weight: str
    accepted: bool


class Selection(Strict):
    """A row's part in a selection: a candidate on validation documents, or a choice reported on test documents."""

    split: Literal["validation", "test"]
    documents: dict[str, int]  # number of documents scored, by task
    chosen_for: str | None = None  # the task or group, or `mean`; for choices on test documents
    candidates: int | None = None  # number of candidates, failed ones included
    validated_on: dict[str, int] | None = None  # number of validation documents, by task
    validation_cells: list[str] | None = None  # the rows that decided the choice, one per seed
    predicted: dict[str, float] | None = None  # by screening, per choice: change of log-loss, nats per document
    decisions: list[Decision] | None = None  # of a composition, in order
    stopped: dict[str, int] | None = None  # in a race: documents scored before the stop, by task

    @property
    def part(self) -> str:
        """The name of the documents in the manifest: `validation`, `test`, or `test/TASK`."""
        return self.split if self.chosen_for is None else f"{self.split}/{self.chosen_for}"


class Row(Strict):
    """One cell: its edits, cost and scores. Differences from the baseline are computed when a table is made."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    cell: Annotated[str, AfterValidator(_of_a_file)]  # also names the file of its samples
    status: Literal["ok", "failed", "skipped"]
    reason: str | None = None
    environment: str
    suite: str
    model: str
    reducer: str | None = None  # None: the baseline
    label: str | None = None
    delta: str | None = None  # the base, if updates are reduced: W is W - W_base, and keep_model is on top of the base
    params: dict[str, Any] = Field(default_factory=dict)
    mode: str | None = None
    requested: dict[str, Number] = Field(default_factory=dict)
    allocation: str | None = None  # how keep_model was allocated to the weights
    allocation_trial: AllocationTrial | None = None  # of `allocation: loss`
    seed: Whole = 0
    edits: list[Edit] = Field(default_factory=list)
    keep_targets: float | None = None
    keep_model: float | None = None
    compression_ratio: float | None = None
    predicted_loss: float | None = None  # summed over the edits; None if one of theirs is unknown
    calibrate_seconds: float = 0.0
    decompose_seconds: float = 0.0
    allocate_seconds: float = 0.0  # time to find the ranks, beyond decompose_seconds
    evaluate_seconds: float = 0.0
    scores: dict[str, dict[str, Score]] = Field(default_factory=dict)
    inference: InferenceSpeed | None = None  # if the suite measures it
    selection: Selection | None = None  # if the suite selects

    model_config = ConfigDict(extra="forbid", populate_by_name=True, ser_json_inf_nan="constants")

    @property
    def method(self) -> str | None:
        """The name in tables: the label, and the allocation if there is one; None for the baseline."""
        name = self.label or self.reducer
        return f"{name}, {self.allocation}" if name and self.allocation else name

    @property
    def setting(self) -> str:
        """The requested rank as text: `keep 0.5`; empty for the baseline, `composed` for a composition."""
        if self.mode == "greedy" and not self.requested:
            return "composed"
        return ", ".join(f"{kind} {value:g}" for kind, value in self.requested.items())
