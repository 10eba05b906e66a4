"""How fast a model reads and writes, as rows record it: dense against factored."""

from __future__ import annotations

from pydantic import Field

from lrbench.results.scores import Strict, Whole


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
    """The unedited model and the one with factors, measured in turns; the unedited one's row has no `factored`."""

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
