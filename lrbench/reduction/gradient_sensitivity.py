"""Predicts the effect of every truncation from the gradient of the loss with respect to each singular value.

With W = U diag(σ) Vᵀ and G = ∂L/∂W over some documents, ∂L/∂σ_i = u_iᵀ G v_i, and dropping the components from k + 1 on
changes the loss by about −Σ_{i>k} σ_i ∂L/∂σ_i. Since σ_i v_i = Wᵀ u_i, each term is u_iᵀ G Wᵀ u_i, so only the singular
vectors of the shorter side are needed. One backward pass serves all weights and ranks ("Compress to Impress", arXiv
2510.20800).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from transformers import PreTrainedModel

from lrbench.evaluation.sweep.sizes import free_bytes
from lrbench.linalg import Spectrum
from lrbench.models.slots import WeightSlot

_MEMORY_FRACTION = 1 / 2  # of the free memory, for gradients


@dataclass(frozen=True)
class ScoredTokens:
    """A token sequence whose last tokens' log-likelihood is part of the loss.

    Attributes:
        tokens: (length,) ids, context and continuation.
        scored: how many of the last tokens are predicted.
    """

    tokens: torch.Tensor
    scored: int


@dataclass(frozen=True)
class Sensitivity:
    """The first-order expansion of the loss in the singular values of one weight W (m, n).

    Attributes:
        singular_values: descending, (min(m, n),) float64.
        terms: σ_i ∂L/∂σ_i, (min(m, n),) float64, in nats.
    """

    singular_values: torch.Tensor
    terms: torch.Tensor

    @cached_property
    def _dropped(self) -> torch.Tensor:
        """Element k is the sum of the terms from k + 1 on; (min(m, n) + 1,)."""
        return torch.cat([self.terms.flip(0).cumsum(0).flip(0), self.terms.new_zeros(1)])

    def __add__(self, other: Sensitivity) -> Sensitivity:
        """The sensitivity to the sum of two losses."""
        return Sensitivity(self.singular_values, self.terms + other.terms)

    def change(self, rank: int) -> float:
        """The predicted change of the loss, in nats, if only the first `rank` components are kept."""
        return -float(self._dropped[min(rank, len(self.terms))])


def sensitivities(
    model: PreTrainedModel,
    slots: Sequence[WeightSlot],
    documents: Sequence[Sequence[ScoredTokens]],
    notify: Callable[[str], None],
) -> dict[str, Sensitivity]:
    """The gradient of a task's loss with respect to the singular values of weights.

    The loss is the mean over documents of the negative log-likelihood of their scored tokens. If the gradients of all
    weights do not fit half of the free memory, the documents are passed over once per group of weights.

    Args:
        model: with its original weights; left unchanged.
        slots: the model's, each a whole parameter or a part of one.
        documents: the scored token sequences of each document.
        notify: called if one pass is not enough.

    Returns:
        Slot's name -> its sensitivity.
    """
    result: dict[str, Sensitivity] = {}
    groups = list(_groups(slots, free_bytes(model.device) * _MEMORY_FRACTION))
    if len(groups) > 1:
        notify(f"screening: gradients of all weights do not fit the memory; {len(groups)} passes over the documents")
    for group in groups:
        with _gradients(model, group, documents) as gradient_of:
            for slot in group:
                result[slot.name] = _sensitivity(slot.read(), slot.layout.read(gradient_of(slot)))
    return result


def _sensitivity(weight: torch.Tensor, gradient: torch.Tensor) -> Sensitivity:
    W, G = weight.double(), gradient.double()  # (m, n) both
    spectrum = Spectrum(W)
    short, along = (W, G) if spectrum.wide else (W.mT, G.mT)  # (s, l) both, s = min(m, n)
    vectors = spectrum.vectors  # (s, s)
    terms = (vectors * (along @ (short.mT @ vectors))).sum(0)  # (s,)
    errors = torch.tensor(spectrum.errors(), dtype=torch.float64)  # (s + 1,)
    values = (errors[:-1].square() - errors[1:].square()).clamp(min=0).sqrt()  # (s,)
    return Sensitivity(values, terms.cpu())


def _groups(slots: Sequence[WeightSlot], budget: float) -> Iterator[list[WeightSlot]]:
    """Groups slots so that each group's gradients fit a budget in bytes; parts of one parameter stay together."""
    by_parameter: dict[int, list[WeightSlot]] = {}
    for slot in slots:
        by_parameter.setdefault(id(slot.tensor()), []).append(slot)
    group: list[WeightSlot] = []
    held = 0
    for parts in by_parameter.values():
        size = parts[0].tensor().numel() * 4
        if group and held + size > budget:
            yield group
            group, held = [], 0
        group += parts
        held += size
    if group:
        yield group


@contextmanager
def _gradients(
    model: PreTrainedModel, slots: Sequence[WeightSlot], documents: Sequence[Sequence[ScoredTokens]]
) -> Iterator[Callable[[WeightSlot], torch.Tensor]]:
    """The gradient of the mean loss with respect to each slot's parameter, summed in float32."""
    parameters = {id(slot.tensor()): slot.tensor() for slot in slots}
    before = {key: parameter.requires_grad for key, parameter in parameters.items()}
    sums = {key: torch.zeros_like(parameter, dtype=torch.float32) for key, parameter in parameters.items()}

    def accumulate(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            sums[id(parameter)] += parameter.grad
            parameter.grad = None

    hooks = []
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in parameters]
    try:
        for parameter in others:
            parameter.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
            hooks.append(parameter.register_post_accumulate_grad_hook(accumulate))
        with torch.enable_grad():
            for document in documents:
                for sequence in document:
                    loss = _loss(model, sequence) / len(documents)
                    if loss.requires_grad:  # else it depends on none of the slots
                        loss.backward()
        yield lambda slot: sums[id(slot.tensor())]
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in others:
            parameter.requires_grad_(True)
        for key, parameter in parameters.items():
            parameter.grad = None
            parameter.requires_grad_(before[key])


def _loss(model: PreTrainedModel, sequence: ScoredTokens) -> torch.Tensor:
    """The negative log-likelihood of the scored tokens, in nats."""
    tokens = sequence.tokens.to(model.device)
    logits = model(input_ids=tokens[None, :-1], use_cache=False).logits[0, -sequence.scored :]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return nn.functional.cross_entropy(logits, tokens[-sequence.scored :].to(logits.device), reduction="sum")
