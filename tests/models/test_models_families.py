"""Every architecture's slots: found, named, and the matrix that the model multiplies by."""

from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrbench.models.edit import edited
from lrbench.models.load import weight_hash
from lrbench.models.slot_search import find_slots
from lrbench.models.slots import count_parameters
from tests.support.architectures import ARCHITECTURES, EXPERTS, VOCABULARY, build, shared

IDS = torch.arange(2 * 11).reshape(2, 11) * 7 % (VOCABULARY - 3) + 3
every = pytest.mark.parametrize("name", list(ARCHITECTURES))
FUSED_ATTENTION = [name for name, a in ARCHITECTURES.items() if any(part.endswith("[q]") for part in a.block)]
FUSED_MLP = [name for name, a in ARCHITECTURES.items() if any(part.endswith("weight[gate]") for part in a.block)]
STACKED = [name for name, a in ARCHITECTURES.items() if any(part.endswith("[0][gate]") for part in a.block)]


@torch.no_grad()
def logits(model):
    return model(IDS, use_cache=False).logits


def of_layer(inventory, layer=1):
    return [slot for slot in inventory.slots if slot.about.layer == layer]


@every
def test_every_slot_is_found_and_named_and_everything_else_is_accounted_for(name):
    architecture, (model, inventory) = ARCHITECTURES[name], shared(name)
    inside = [
        (f"{architecture.blocks}.{layer}.{path}", role)
        for layer in range(len(inventory.blocks))
        for path, role in architecture.block.items()
    ]
    found = {slot.name: slot.about.role for slot in inventory.slots}
    assert len(found) == len(inventory.slots)
    assert found == {**dict(inside), **architecture.outside}
    assert len(inventory.blocks) == 2
    assert {path for path, _ in inventory.unnamed} == {path for path, role in found.items() if role is None}
    expected = {path.format(layer): why for path, why in architecture.left_out.items() for layer in range(2)}
    assert {path for path, _ in inventory.left_out} == set(expected)
    for path, why in inventory.left_out:
        assert why.startswith(expected[path])
    # Every matrix of the model is a slot, or parts that make it up, or left out with a reason.
    sizes = Counter()
    for slot in inventory.slots:
        sizes[slot.tensor_name] += slot.size
    for path, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.ndim > 1:
            assert sizes.get(path) == parameter.numel() or path in expected, path
    head = next(slot for slot in inventory.slots if slot.about.role == "head")
    assert head.users == (2 if architecture.tied else 1)


@every
def test_a_slot_reads_the_matrix_that_y_equals_Wx_uses(name):
    model, inventory = shared(name)
    seen, hooks = {}, []
    visible = [slot for slot in inventory.slots if slot.input_visible]
    for module in {id(slot.module): slot.module for slot in visible}.values():
        hooks.append(
            module.register_forward_hook(  # copies, for some blocks add to an output in place
                lambda module, args, out: seen.update({module: (args[0].clone(), out.clone())})
            )
        )
    logits(model)
    for hook in hooks:
        hook.remove()
    for slot in inventory.slots:
        W = slot.read()
        assert tuple(W.shape) == slot.about.shape
        if slot.about.role == "embed":
            one_hot = torch.nn.functional.one_hot(IDS, W.shape[1]).float()
            scale = float(getattr(slot.module, "embed_scale", 1.0))
            torch.testing.assert_close(one_hot @ W.T * scale, slot.module(IDS))
        elif slot.input_visible:
            x, y = seen[slot.module]
            bias = getattr(slot.module, "bias", None)
            y = y if bias is None else y - bias
            torch.testing.assert_close(x @ W.T, slot.layout.of_output(y), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FUSED_ATTENTION)
def test_the_parts_of_fused_attention_are_what_attention_makes_of_them(name):
    """Told by derivatives, whatever the layout: position 0 sees itself alone, so that its query and key change nothing.

    What its query yields is nowhere else; what its key yields, position 1 sees.
    """
    model = build(name).double()  # what is nothing but rounding is then far below what is not
    inventory = find_slots(model)
    parts = {slot.part[1:-1]: slot for slot in of_layer(inventory) if slot.part in ("[q]", "[k]", "[v]")}
    projection = parts["q"].module
    attention = model.get_submodule(parts["q"].tensor_name.removesuffix(".weight").rpartition(".")[0])
    kept = {}

    def leaf(module, args, out):
        kept["fused"] = out.detach().requires_grad_()
        return kept["fused"]

    hooks = [
        projection.register_forward_hook(leaf),
        attention.register_forward_hook(
            lambda m, a, out: kept.update(out=out if isinstance(out, torch.Tensor) else out[0])
        ),
    ]
    with torch.enable_grad():
        model(IDS[:1, :2], use_cache=False)
        weights = torch.randn(kept["out"].shape[-1], generator=torch.Generator().manual_seed(0))
        at = [
            torch.autograd.grad((kept["out"][0, row] * weights).sum(), kept["fused"], retain_graph=True)[0][0, 0]
            for row in (0, 1)
        ]
    for hook in hooks:
        hook.remove()
    on_itself, on_the_next = ({part: slot.layout.of_output(g).abs() for part, slot in parts.items()} for g in at)
    least, rounding = 1e-9, 1e-13
    assert on_itself["v"].min() > least
    assert on_itself["q"].max() < rounding
    assert on_itself["k"].max() < rounding
    assert on_the_next["q"].max() == 0
    assert on_the_next["k"].min() > least
    assert on_the_next["v"].min() > least
    assert sum(slot.about.shape[0] for slot in parts.values()) == kept["fused"].shape[-1]


@pytest.mark.parametrize("name", FUSED_MLP)
def test_the_parts_of_a_fused_mlp_make_its_output(name):
    model, inventory = shared(name)
    gate, up, down = (
        next(s for s in of_layer(inventory) if s.about.role == f"mlp.{p}") for p in ("gate", "up", "down")
    )
    mlp = model.get_submodule(down.name.removesuffix(".down_proj.weight"))
    x = torch.randn(5, gate.about.shape[1], generator=torch.Generator().manual_seed(0))
    activation = mlp.activation_fn
    torch.testing.assert_close(down.module(activation(x @ gate.read().T) * (x @ up.read().T)), mlp(x))
    swapped = down.module(activation(x @ up.read().T) * (x @ gate.read().T))
    assert not torch.allclose(swapped, mlp(x), atol=1e-3)  # else this would show nothing


@pytest.mark.parametrize("name", STACKED)
def test_the_slots_of_an_expert_make_its_output(name):
    _, inventory = shared(name)
    slots = {(s.layout.expert, s.about.role): s for s in of_layer(inventory) if s.layout.expert is not None}
    assert len(slots) == 3 * EXPERTS
    module = slots[0, "mlp.gate"].module
    x = torch.randn(6, slots[0, "mlp.gate"].about.shape[1], generator=torch.Generator().manual_seed(0))
    for expert in range(EXPERTS):
        gate, up, down = (slots[expert, f"mlp.{part}"].read() for part in ("gate", "up", "down"))
        if name == "llama4":  # its experts are given the same tokens each, one after the other
            found = module(x.repeat(EXPERTS, 1))[expert * len(x) : (expert + 1) * len(x)]
            expected = (module.act_fn(x @ gate.T) * (x @ up.T)) @ down.T
        else:
            found = module(x, torch.full((len(x), 1), expert), torch.ones(len(x), 1))
            if name == "gpt_oss":
                biases, below = module.gate_up_proj_bias[expert], module.down_proj_bias[expert]
                g = (x @ gate.T + biases[0::2]).clamp(max=module.limit)
                u = (x @ up.T + biases[1::2]).clamp(-module.limit, module.limit)
                expected = ((u + 1) * g * torch.sigmoid(g * module.alpha)) @ down.T + below
            else:
                expected = (module.act_fn(x @ gate.T) * (x @ up.T)) @ down.T
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert not slots[expert, "mlp.down"].input_visible
        assert "expert" in slots[expert, "mlp.down"].no_input


@every
def test_a_full_rank_edit_changes_nothing_and_its_end_restores_the_model_bit_for_bit(name):
    model, inventory = shared(name)
    before, plain = weight_hash(model), logits(model)
    parameters, config = dict(model.named_parameters()), model.config.to_dict()
    outside = [slot for slot in inventory.slots if slot.about.layer is None]
    for slot in [*of_layer(inventory), *outside]:
        with edited({slot: torch.zeros(slot.about.shape)}):
            assert not torch.equal(logits(model), plain), slot.name
        with edited({slot: slot.read().clone()}):
            assert torch.equal(logits(model), plain), slot.name
    with edited({slot: slot.read().clone() for slot in inventory.slots}):
        assert torch.equal(logits(model), plain)
    assert weight_hash(model) == before
    assert all(parameters[path] is parameter for path, parameter in model.named_parameters())
    assert model.config.to_dict() == config
    assert torch.equal(logits(model), plain)


@every
def test_an_edit_changes_its_own_part_and_nothing_else(name):
    _, inventory = shared(name)
    own = of_layer(inventory)
    before = {slot: slot.read().clone() for slot in own}
    for slot in own:
        new = torch.full(slot.about.shape, 9.0)
        with edited({slot: new}):
            for other in own:
                assert torch.equal(other.read(), new if other is slot else before[other]), (slot.name, other.name)
    new = {slot: torch.full(slot.about.shape, 1.0 + place) for place, slot in enumerate(own[::2])}
    with edited(new):
        for slot in own:
            assert torch.equal(slot.read(), new.get(slot, before[slot])), slot.name


@every
def test_a_fused_bias_stays(name):
    _, inventory = shared(name)
    for module in {slot.module for slot in of_layer(inventory)}:
        slots = [slot for slot in of_layer(inventory) if slot.module is module]
        bias = getattr(module, "bias", None)
        if bias is None or not slots[0].input_visible:
            continue
        x = torch.randn(3, slots[0].about.shape[1])
        with edited({slot: torch.zeros(slot.about.shape) for slot in slots}):
            torch.testing.assert_close(module(x), bias.expand(3, -1))


@pytest.mark.parametrize("name", [name for name, a in ARCHITECTURES.items() if a.tied])
def test_an_edit_of_a_tied_head_cannot_be_tied_away(name, tmp_path):
    model = build(name)
    inventory = find_slots(model)
    head = next(slot for slot in inventory.slots if slot.about.role == "head")
    embed = next(slot for slot in inventory.slots if slot.about.role == "embed")
    assert head.place == embed.place
    numbers, plain, original = count_parameters(model), logits(model), embed.tensor()
    with edited({head: head.read() * 0.5}):
        assert embed.tensor() is original
        changed = logits(model)
        assert not torch.equal(changed, plain)
        assert count_parameters(model) == numbers + head.size
        model.tie_weights()
        assert torch.equal(logits(model), changed)
        model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), changed)
    assert head.tensor() is embed.tensor() is original
    assert count_parameters(model) == numbers
    with torch.no_grad():
        original += 1  # what ties them holds again
    assert torch.equal(head.read(), embed.read().T)
    model.tie_weights()
    assert head.tensor() is embed.tensor()


@every
def test_a_saved_model_has_the_same_slots(name, tmp_path):
    model, inventory = shared(name)
    model.save_pretrained(tmp_path)
    again = find_slots(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert [(slot.about, slot.users) for slot in again.slots] == [(slot.about, slot.users) for slot in inventory.slots]
    for mine, theirs in zip(inventory.slots, again.slots, strict=True):
        assert torch.equal(mine.read(), theirs.read()), mine.name
