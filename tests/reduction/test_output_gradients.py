"""The second moment of output gradients: against perturbed outputs, in little memory, from sampled labels; refusals."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lrbench.errors import ReducerError
from lrbench.models.slot_search import find_slots
from lrbench.reduction.calibration import gradients
from lrbench.reduction.calibration.gradients import output_gradients
from lrbench.reduction.calibration.labels import Labels
from tests.reduction.test_calibration_statistics import calibrate, close, slot_of, some_windows  # noqa: F401
from tests.support.tiny_models import FAMILIES, tiny

G = "output_gradient_moment"


def moments_of(model, slots, windows, labels=Labels()):  # noqa: B008
    return {one.slot.name: one for one in output_gradients(model, slots, windows, labels)}


@contextmanager
def perturbed(slots):
    """Adds zeros to the outputs of the slots' modules; their gradients are those in the outputs."""
    zeros = {}

    def add(module, args, output):
        zeros.setdefault(id(module), []).append(torch.zeros_like(output).requires_grad_(True))
        return output + zeros[id(module)][-1]

    hooks = [module.register_forward_hook(add) for module in {slot.module for slot in slots}]
    yield zeros
    for hook in hooks:
        hook.remove()


def summed_loss(model, window):
    logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
    return nn.functional.cross_entropy(logits, window[1:], reduction="sum")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_moments_are_those_of_the_gradients_in_perturbed_outputs(family):
    dtype = torch.float32 if family == "mixtral" else torch.float64  # its grouped products have no float64
    model, windows = tiny(family, dtype), some_windows(samples=3)
    slots = [slot for slot in find_slots(model).slots if slot.input_visible]
    found = moments_of(model, slots, windows)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    expected = dict.fromkeys(found, 0)
    for window in windows:
        with perturbed(slots) as zeros, torch.enable_grad():
            summed_loss(model, window).backward()
        for slot in slots:
            for zero in zeros[id(slot.module)]:
                g = slot.layout.of_output(zero.grad).reshape(-1, slot.about.shape[0])
                expected[slot.name] = expected[slot.name] + g.T @ g / windows.numel()
    for name, value in expected.items():
        assert not found[name].failure
        assert found[name].moments.tokens == windows.numel()
        assert close(found[name].moments.mean("second_moment").double(), value, 1e-5), name


def test_experts_have_the_moments_of_the_tokens_that_are_routed_to_them(monkeypatch):
    model, windows = tiny("mixtral"), some_windows(samples=3)
    inventory = find_slots(model)
    slots = [slot for slot in inventory.slots if "experts" in slot.name and slot.about.layer == 1]
    found = moments_of(model, slots, windows)
    experts = inventory.blocks[1].mlp.experts
    zeros = {}

    def token_by_token(hidden, chosen, weights):
        rows = []
        for x, places, shares in zip(hidden, chosen.tolist(), weights, strict=True):
            parts = []
            for e, share in zip(places, shares, strict=True):
                first, second = (torch.zeros(n, dtype=x.dtype).requires_grad_(True) for n in (96, 32))
                zeros.setdefault(e, []).append((first, second))
                gate, up = (experts.gate_up_proj[e] @ x + first).chunk(2)
                parts.append(share * (experts.down_proj[e] @ (experts.act_fn(gate) * up) + second))
            rows.append(sum(parts))
        return torch.stack(rows)

    monkeypatch.setattr(experts, "forward", token_by_token)
    model.get_input_embeddings().weight.requires_grad_(True)
    with torch.enable_grad():
        for window in windows:
            summed_loss(model, window).backward()
    for e, leaves in zeros.items():
        for name, place, rows in (("gate_up_proj[%d][up]", 0, slice(48, 96)), ("down_proj[%d]", 1, slice(32))):
            g = torch.stack([pair[place].grad[rows] for pair in leaves])
            moments = found[f"model.layers.1.mlp.experts.{name % e}"].moments
            assert moments.tokens == len(g)
            assert close(moments.mean("second_moment").double(), g.T @ g / len(g), 1e-4), name % e


def test_sums_that_do_not_fit_together_are_made_in_several_passes(monkeypatch):
    model, windows = tiny("llama"), some_windows(samples=2)
    slots = [slot for slot in find_slots(model).slots if slot.about.role != "embed"]
    roomy = moments_of(model, slots, windows)
    monkeypatch.setattr(gradients, "free_bytes", lambda device: 0)
    passes = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    tight = moments_of(model, slots, windows)
    hook.remove()
    assert len(passes) == len(slots) * len(windows)
    for name, one in roomy.items():
        assert torch.equal(tight[name].moments.mean("second_moment"), one.moments.mean("second_moment"))


def test_sampled_labels_have_the_models_distribution_and_a_seed():
    model, window = tiny("llama"), torch.full((2000,), 5)[:500]  # of one token: all positions have one distribution
    windows = torch.stack([window] * 4)
    head = next(slot for slot in find_slots(model).slots if slot.about.role == "head")
    with torch.no_grad():
        p = model(input_ids=window[None, :2], use_cache=False).logits[0, 0].double().softmax(-1)
    exact = p.diag() - p[:, None] * p  # E[g gᵀ] of g = p − the label's unit vector

    def sampled(seed):
        moments = moments_of(model, [head], windows, Labels("sampled", seed))[head.name].moments
        return moments.mean("second_moment").double() * 500 / 499  # the last position of a window has no label

    first, second, other = sampled(0), sampled(0), sampled(1)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert close(first, exact, 0.3)  # of about 2,000 draws
    empirical = moments_of(model, [head], windows)[head.name].moments.mean("second_moment").double()
    assert not close(empirical, exact, 0.5)


# What a run asks


def test_statistics_hold_the_moment_and_their_number_of_tokens(calibrate, monkeypatch):  # noqa: F811
    model, windows = tiny("llama"), some_windows(samples=3)
    slot = slot_of(model, "mlp.down")
    expected = moments_of(model, [slot], windows)[slot.name].moments.mean("second_moment")
    found, seconds = calibrate(model, windows).statistics(slot, frozenset({G}))
    assert torch.equal(found[G], expected)
    assert seconds > 0
    monkeypatch.setattr(type(model), "forward", lambda *a, **k: pytest.fail("the model was run"))
    again, _ = calibrate(model, windows).statistics(slot, frozenset({G}))
    assert torch.equal(again[G], expected)


def test_sampled_labels_are_other_statistics_in_the_cache(calibrate):  # noqa: F811
    model = tiny("llama")
    slot = slot_of(model, "mlp.down")
    needs = frozenset({G, "fisher", "second_moment"})
    plain = calibrate(model).statistics(slot, needs)[0]
    sampled = calibrate(model, overrides=["calibration.fisher=sampled"]).statistics(slot, needs)[0]
    assert torch.equal(plain["second_moment"], sampled["second_moment"])
    assert not torch.equal(plain[G], sampled[G])
    assert not torch.equal(plain["fisher"], sampled["fisher"])
    assert len(list(calibrate.folder.glob("*/second_moment-*"))) == 1


def refusal(calibration, slot):
    with pytest.raises(ReducerError) as caught:
        calibration.statistics(slot, frozenset({G}))
    return str(caught.value)


def test_moments_that_cannot_be_computed_are_refused_with_a_reason(calibrate, monkeypatch):  # noqa: F811
    model = tiny("llama")
    slots = {slot.about.role: slot for slot in find_slots(model).slots}
    short = calibrate(model, some_windows(samples=1, length=40))
    assert "40 tokens of the calibration text reached it, fewer than its 97 outputs" in refusal(short, slots["head"])
    forward = type(model.model).forward

    def without_gradient(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.last_hidden_state = output.last_hidden_state.detach()
        return output

    monkeypatch.setattr(type(model.model), "forward", without_gradient)
    assert "the model's loss has no gradient" in refusal(calibrate(model), slots["mlp.down"])


def test_a_gradient_that_is_not_finite_is_refused(calibrate):  # noqa: F811
    model = tiny("llama")
    model.lm_head.weight.data[3, 3] = float("nan")
    assert "not finite" in refusal(calibrate(model), slot_of(model, "mlp.down"))
