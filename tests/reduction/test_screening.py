"""The gradient of the loss in singular values, against autograd and against what truncation really does."""

import pytest
import torch

from lrbench.models.edit import edited
from lrbench.models.slot_search import find_slots
from lrbench.reduction import gradient_sensitivity as screening
from lrbench.reduction.gradient_sensitivity import ScoredTokens, sensitivities
from tests.support.tiny_models import tiny


def _documents(count=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        [ScoredTokens(torch.randint(3, 60, (int(length),), generator=draw), scored=2)]
        for length in torch.randint(5, 12, (count,), generator=draw)
    ]


def _loss(model, documents):
    with torch.no_grad():
        return float(sum(screening._loss(model, one) for (one,) in documents) / len(documents))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny("llama").double()


def _slots(model):
    return [slot for slot in find_slots(model).slots if slot.about.layer is not None]


def test_the_terms_are_singular_values_times_the_losss_gradient_in_them(model):
    documents = _documents()
    slots = _slots(model)[:3] + _slots(model)[-3:]  # wide, square and tall ones
    found = sensitivities(model, slots, documents, print)
    for slot in slots:
        W = slot.read().clone()
        U, S, Vt = torch.linalg.svd(W, full_matrices=False)
        S = S.clone().requires_grad_()
        loss = 0.0
        for (one,) in documents:
            name = slot.tensor_name
            tokens = one.tokens
            logits = torch.func.functional_call(
                model, {name: U @ torch.diag(S) @ Vt}, kwargs={"input_ids": tokens[None, :-1], "use_cache": False}
            ).logits[0, -one.scored :]
            asked = torch.nn.functional.cross_entropy(logits, tokens[-one.scored :], reduction="sum")
            loss = loss + asked / len(documents)
        (gradient,) = torch.autograd.grad(loss, S)
        terms = (S * gradient).detach()
        assert torch.allclose(found[slot.name].singular_values, S.detach(), atol=1e-6)
        assert torch.allclose(found[slot.name].terms, terms, atol=1e-6)


def test_a_small_truncation_changes_the_loss_as_predicted(model):
    documents = _documents()
    before = _loss(model, documents)
    for slot in _slots(model)[:4]:
        sensitivity = sensitivities(model, [slot], documents, print)[slot.name]
        rank = 4
        U, S, Vt = torch.linalg.svd(slot.read())
        tiny = U[:, : len(S)] @ torch.diag(S * (torch.arange(len(S)) < rank)) @ Vt[: len(S)]
        step = 1e-2  # of the way: the first order is nearly all there is, and norms in float32 do not drown it
        with edited({slot: slot.read() + step * (tiny - slot.read())}):
            change = _loss(model, documents) - before
        assert change / step == pytest.approx(sensitivity.change(rank), rel=0.1, abs=2e-4)


def test_a_full_rank_changes_nothing_and_rank_zero_takes_all_terms(model):
    slot = _slots(model)[0]
    sensitivity = sensitivities(model, [slot], _documents(), print)[slot.name]
    assert sensitivity.change(len(sensitivity.terms)) == 0.0
    assert sensitivity.change(10**6) == 0.0
    assert sensitivity.change(0) == pytest.approx(-float(sensitivity.terms.sum()))


def test_where_gradients_do_not_fit_together_the_numbers_stay(model, monkeypatch):
    slots, documents, told = _slots(model)[:5], _documents(3), []
    together = sensitivities(model, slots, documents, told.append)
    assert not told
    monkeypatch.setattr(screening, "free_bytes", lambda device: 1)
    apart = sensitivities(model, slots, documents, told.append)
    assert len(told) == 1
    assert "5 passes" in told[0]
    for slot in slots:
        assert torch.allclose(together[slot.name].terms, apart[slot.name].terms, atol=1e-9)


def test_the_model_is_left_as_it_was(model):
    before = {name: (p.requires_grad, p._version) for name, p in model.named_parameters()}
    sensitivities(model, _slots(model), _documents(2), print)
    assert {name: (p.requires_grad, p._version) for name, p in model.named_parameters()} == before
    assert all(p.grad is None for p in model.parameters())


def test_parts_of_a_fused_parameter_have_their_own(model):
    torch.manual_seed(1)
    fused = tiny("gpt_neox").double()
    slots = [slot for slot in _slots(fused) if slot.part]
    assert slots
    found = sensitivities(fused, slots, _documents(2), print)
    assert len({tuple(found[slot.name].terms.tolist()) for slot in slots}) == len(slots)
