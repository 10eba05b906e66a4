"""Calibration statistics: against plain hooks on the whole model, in little memory, from the cache; refusals."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from lrbench.errors import InputError, ReducerError
from lrbench.models.load import LoadedModel, config_hash, weight_hash
from lrbench.models.slot_search import find_slots
from lrbench.reduction.calibration import activations, cache, moments
from lrbench.reduction.calibration.activations import Activations
from lrbench.reduction.calibration.gradients import fisher
from lrbench.reduction.calibration.samples import Samples
from lrbench.reduction.calibration.statistics import Calibration
from lrbench.suite.load import load_suite
from tests.support.tiny_models import FAMILIES, VOCABULARY, tiny

BOTH = frozenset({"second_moment", "absmean"})


def some_windows(samples=6, length=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (samples, length), generator=generator)


@torch.no_grad()
def heard(model, slots, windows):
    """What enters each slot's module, (tokens, in) float64, by plain hooks on the whole model."""
    found = {slot.name: [] for slot in slots}
    hooks = [
        slot.module.register_forward_pre_hook(
            lambda _, args, name=slot.name: found[name].append(args[0].reshape(-1, args[0].shape[-1]).double())
        )
        for slot in slots
    ]
    for window in windows:
        model(input_ids=window[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items() if parts}


def collected(model, inventory, windows, kinds=BOTH, notify=lambda _: None):
    """Weight -> kind -> statistic, and the collector."""
    collector = Activations(model, inventory, windows, notify)
    wanted = dict.fromkeys(collector.survey.inputs, kinds)
    found = {}
    for one in collector.collect(wanted):
        for weight in one.input.weights:
            found[weight] = {kind: one.moments.mean(kind).double() for kind in kinds}
    return found, collector


def close(found, expected, tolerance=1e-5):
    return float((found - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_those_of_plain_hooks_on_the_whole_model(family, monkeypatch):
    monkeypatch.setattr(activations, "TOKENS", 80)  # three batches
    model, windows = tiny(family), some_windows()
    inventory = find_slots(model)
    expected = heard(model, [slot for slot in inventory.slots if slot.input_visible], windows)
    found, collector = collected(model, inventory, windows)
    assert not collector.whole
    assert set(found) == {slot.name for slot in inventory.slots if slot.about.role != "embed"}
    for name, x in expected.items():
        assert close(found[name]["second_moment"], x.T @ x / len(x)), name
        assert close(found[name]["absmean"], x.abs().mean(0)), name


def test_whole_passes_give_the_same_statistics(monkeypatch):
    model, windows, notes = tiny("llama"), some_windows(), []
    inventory = find_slots(model)
    by_blocks, _ = collected(model, inventory, windows)

    def refuse(self, count, states):
        raise KeyError("shared keys")

    states = activations.PartialForward.states
    monkeypatch.setattr(activations.PartialForward, "states", refuse)
    whole, collector = collected(model, inventory, windows, notify=notes.append)
    monkeypatch.setattr(activations.PartialForward, "states", states)
    assert collector.whole
    assert len(notes) == 1
    assert all(torch.equal(whole[name][kind], by_blocks[name][kind]) for name in by_blocks for kind in BOTH)


def test_weights_that_take_the_same_input_share_its_statistics():
    model = tiny("llama")
    survey = Activations(model, find_slots(model), some_windows(), lambda _: None).survey
    shared = [one.weights for one in survey.inputs.values() if one.layer == 0]
    roles = [[name.split(".")[-2] for name in weights] for weights in shared]
    assert roles == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


class Recount(nn.Module):
    """Two linear maps, the second called twice, once with what the first is given."""

    def __init__(self, block):
        super().__init__()
        self.block = block
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x, *args, **kwargs):
        extra = self.first(x) + self.second(x) + self.second(2 * x)
        return self.block(x, *args, **kwargs) + 0 * extra


def test_a_module_called_twice_shares_nothing_and_counts_both_calls():
    model = tiny("llama")
    model.model.layers[1] = Recount(model.model.layers[1])
    inventory, windows = find_slots(model), some_windows()
    found, collector = collected(model, inventory, windows)
    first, second = (f"model.layers.1.{name}.weight" for name in ("first", "second"))
    assert collector.survey.input_of[first] != collector.survey.input_of[second]
    assert close(found[second]["second_moment"], 2.5 * found[first]["second_moment"])


def test_only_one_blocks_sums_are_in_memory_and_the_model_is_run_once(monkeypatch):
    alive, most = weakref.WeakSet(), []
    init = moments.Moments.__init__

    def counted(self, *args):
        init(self, *args)
        alive.add(self)
        most.append(len(alive))

    monkeypatch.setattr(moments.Moments, "__init__", counted)
    model, windows = tiny("llama"), some_windows(samples=8, length=20)
    inventory = find_slots(model)
    collector = Activations(model, inventory, windows, lambda _: None)
    tokens = []
    hooks = [
        block.mlp.down_proj.register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[:2].numel()))
        for block in inventory.blocks
    ]
    for one in collector.collect(dict.fromkeys(collector.survey.inputs, BOTH)):
        del one
    for hook in hooks:
        hook.remove()
    assert max(most) <= 4 + 1  # a block's inputs, and the one in hand
    assert sum(tokens) == windows.numel() * len(inventory.blocks)


def test_sums_that_do_not_fit_together_are_made_one_after_the_other(monkeypatch):
    model, windows = tiny("llama"), some_windows()
    inventory = find_slots(model)
    roomy, _ = collected(model, inventory, windows)
    monkeypatch.setattr(activations, "free_bytes", lambda device: 0)
    tight, _ = collected(model, inventory, windows)
    assert all(torch.equal(tight[name][kind], roomy[name][kind]) for name in roomy for kind in BOTH)


def test_seconds_of_the_statistics_add_up_to_those_of_the_passes(monkeypatch):
    model = tiny("llama")
    inventory = find_slots(model)
    calls = []  # of blocks: the clock of this test
    for block in inventory.blocks:
        block.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(activations.time, "perf_counter", lambda: len(calls))
    collector = Activations(model, inventory, some_windows(), lambda _: None)
    some = [name for name, one in collector.survey.inputs.items() if one.layer in (1, 2)]
    found = list(collector.collect(dict.fromkeys(some, BOTH)))
    assert sum(one.seconds for one in found) == pytest.approx(len(calls))
    assert {one.input.layer for one in found} == {1, 2}
    before = len(calls)
    again = list(collector.collect(dict.fromkeys(some[:2], BOTH)))  # what was surveyed is paid for
    assert sum(one.seconds for one in again) == pytest.approx(len(calls) - before)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_of_a_gpu_are_those_of_the_cpu(family, dtype):
    model, windows = tiny(family, dtype), some_windows()
    there, _ = collected(model, find_slots(model), windows)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    model = model.to("cuda")
    here, _ = collected(model, find_slots(model), windows)
    assert all(close(here[name][kind], there[name][kind], tolerance) for name in there for kind in BOTH)


# Fisher information


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt_neox"])
def test_the_fisher_information_is_the_mean_of_single_samples_squared_gradients(family):
    model, windows = tiny(family), some_windows(samples=3)
    slots = [slot for slot in find_slots(model).slots if slot.users == 1 and slot.about.role != "embed"]
    found, _ = fisher(model, slots, windows)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    expected = {slot.name: 0 for slot in slots}
    model.requires_grad_(True)
    for window in windows:
        model.zero_grad()
        model(input_ids=window[None], labels=window[None]).loss.backward()
        for slot in slots:
            expected[slot.name] += slot.layout.read(slot.tensor().grad).double().square().sum(0) / len(windows)
    for name, value in expected.items():
        assert close(found[name].double(), value, 1e-4), name


# Experts, which lie stacked in one parameter


def test_experts_are_calibrated_through_the_routing():
    model, windows = tiny("mixtral"), some_windows()
    inventory = find_slots(model)
    found, collector = collected(model, inventory, windows)
    assert not collector.survey.refused
    experts = inventory.blocks[1].mlp.experts
    calls = []
    hook = experts.register_forward_pre_hook(lambda _, args: calls.append(args))
    with torch.no_grad():
        model(input_ids=windows, use_cache=False)
    hook.remove()
    [(hidden, chosen, _)] = calls
    for e in range(experts.num_experts):
        x = hidden[[token for token in range(len(hidden)) if e in chosen[token]]]
        name = f"model.layers.1.mlp.experts.gate_up_proj[{e}]"
        assert close(found[f"{name}[gate]"]["second_moment"], x.double().T @ x.double() / len(x))
        assert found[f"{name}[up]"] is not None
        gate, up = (x @ experts.gate_up_proj[e].T).chunk(2, -1)
        inner = experts.act_fn(gate) * up
        down = found[f"model.layers.1.mlp.experts.down_proj[{e}]"]
        assert close(down["second_moment"], inner.double().T @ inner.double() / len(inner))
        assert close(down["absmean"], inner.double().abs().mean(0))


def test_experts_that_compute_otherwise_than_their_routing_says_are_refused(monkeypatch):
    model = tiny("mixtral")
    kind = type(model.model.layers[0].mlp.experts)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *args: 2 * forward(self, *args))
    survey = Activations(model, find_slots(model), some_windows(), lambda _: None).survey
    refused = {name: why for name, why in survey.refused.items() if "experts" in name}
    assert len(refused) == 4 * 4 * 3
    assert all("its output does not follow from its routing" in why for why in refused.values())


# What a run asks


def loaded_tiny(model, inventory=None):
    return LoadedModel(
        "tiny", {}, model, None, inventory or find_slots(model), weight_hash(model), config_hash(model),
        torch.device("cpu"), model.dtype,
    )  # fmt: skip


@pytest.fixture
def calibrate(tmp_path, monkeypatch):
    """Makes a Calibration of a tiny model with a cache of its own; remembers what is said."""
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))
    notes = []

    def make(model, windows=None, damping=0.0, inventory=None, overrides=()):
        overrides = ["calibration={name: almanac}", f"calibration.damping={damping}", *overrides]
        suite = load_suite("quickstart", overrides=overrides)
        windows = some_windows() if windows is None else windows
        samples = Samples(windows, f"hash of {windows.tolist()}", (), windows.numel())
        return Calibration(suite.calibration, loaded_tiny(model, inventory), samples, notes.append)

    make.notes = notes
    make.folder = tmp_path / "cache" / "calibration"
    return make


def slot_of(model, role, layer=1):
    return next(s for s in find_slots(model).slots if (s.about.role, s.about.layer) == (role, layer))


def test_a_second_calibration_reads_the_same_bits_and_runs_no_model(calibrate, monkeypatch):
    model = tiny("llama")
    down, q, k = (slot_of(model, role) for role in ("mlp.down", "attn.q", "attn.k"))
    needs = frozenset({"second_moment", "absmean", "fisher"})
    first = calibrate(model)
    before = {slot.name: first.statistics(slot, needs) for slot in (down, q, k)}
    assert len([note for note in calibrate.notes if note.startswith("calibrating")]) == 3  # none was announced
    monkeypatch.setattr(type(model), "forward", lambda *a, **k: pytest.fail("the model was run"))
    second = calibrate(model)
    for slot in (down, q, k):
        found, seconds = second.statistics(slot, needs)
        assert all(torch.equal(found[kind], before[slot.name][0][kind]) for kind in needs)
        assert seconds == before[slot.name][1] > 0
    assert second.statistics(q, needs)[0]["second_moment"] is second.statistics(k, needs)[0]["second_moment"]


@pytest.mark.parametrize("change", ["weights", "windows", "dtype", "config"])
def test_the_cache_is_of_one_model_and_one_text(calibrate, change):
    model = tiny("llama")
    slot = slot_of(model, "mlp.down")
    H = calibrate(model).statistics(slot, frozenset({"second_moment"}))[0]["second_moment"]
    other, windows = tiny("llama"), some_windows(seed=1 if change == "windows" else 0)
    if change == "weights":
        other.model.layers[0].mlp.down_proj.weight.data *= 2
    if change == "dtype":
        other = other.to(torch.bfloat16)
    if change == "config":
        other.config.rms_norm_eps = 0.5
        for block in other.model.layers:
            block.input_layernorm.variance_epsilon = 0.5
    slot = slot_of(other, "mlp.down")
    found = calibrate(other, windows).statistics(slot, frozenset({"second_moment"}))[0]["second_moment"]
    assert not torch.equal(found, H)


@pytest.mark.parametrize("harm", ["torn", "flipped", "exchanged", "nonsense"])
def test_a_spoilt_file_of_the_cache_is_said_and_collected_again(calibrate, harm):
    model = tiny("llama")
    down, gate = slot_of(model, "mlp.down"), slot_of(model, "attn.o")
    needs = frozenset({"second_moment"})
    before = [calibrate(model).statistics(slot, needs)[0]["second_moment"] for slot in (down, gate)]
    files = sorted(calibrate.folder.glob("*/second_moment-*.safetensors"))
    assert len(files) == 2
    content = [bytearray(file.read_bytes()) for file in files]
    content[0][-40] ^= 1
    harmed = {"torn": content[0][:-50], "flipped": content[0], "exchanged": content[1], "nonsense": b"nonsense"}[harm]
    files[0].write_bytes(harmed)
    calibrate.notes.clear()
    after = [calibrate(model).statistics(slot, needs)[0]["second_moment"] for slot in (down, gate)]
    assert any("not usable, collected again" in note for note in calibrate.notes)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_names_of_weights_are_no_paths_in_the_cache(calibrate, tmp_path):
    store = cache.Cache({"a": 1}, calibrate.notes.append)
    for name in ("../../../escaped", "/etc/escaped", "a\0b", "x" * 400):
        store.write("second_moment", name, cache.CacheEntry(torch.ones(2, 2), 0.5, 3))
        entry = store.read("second_moment", name)
        assert (entry.seconds, entry.shared) == (0.5, 3)
    assert {path.parent for path in tmp_path.rglob("*.safetensors")} == {store.folder}
    (store.folder / "inputs.json").write_text("[3]")
    assert cache.Cache({"a": 1}, calibrate.notes.append).inputs() == {}
    store.add_inputs({"w": "v"})
    assert json.loads((store.folder / "inputs.json").read_text()) == {"w": "v"}


def test_a_cache_that_cannot_be_written_is_said_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set LRBENCH_CACHE"):
        cache.Cache({}, print)


def test_without_a_home_folder_a_cache_says_what_to_set(monkeypatch):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LRBENCH_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(InputError, match="no home folder for the cache; set LRBENCH_CACHE to a folder"):
        cache.Cache({}, print)


def test_damping_is_relative_to_the_mean_of_the_diagonal(calibrate):
    model = tiny("llama")
    slot = slot_of(model, "mlp.down")
    calibration = calibrate(model, damping=0.1)
    damped = calibration.statistics(slot, frozenset({"second_moment"}))[0]["second_moment"]
    plain = calibration.second_moment(slot)
    added = 0.1 * float(plain.diagonal().mean())
    assert torch.allclose(damped, plain + added * torch.eye(len(plain)))


def refusal(calibration, slot, *needs):
    with pytest.raises(ReducerError) as caught:
        calibration.statistics(slot, frozenset(needs))
    assert slot.name in str(caught.value)
    return str(caught.value)


def test_fewer_tokens_than_inputs_are_refused_and_suffice_for_mean_sizes(calibrate):
    model = tiny("llama")
    slot = slot_of(model, "mlp.down")
    calibration = calibrate(model, some_windows(samples=2, length=20))
    assert "40 tokens of the calibration text reached it, fewer than its 48 inputs" in refusal(
        calibration, slot, "second_moment"
    )
    assert calibration.statistics(slot, frozenset({"absmean"}))[0]["absmean"].shape == (48,)


def test_a_weight_that_no_token_comes_to_is_refused(calibrate):
    model = tiny("llama")
    model.model.layers[1].idle = nn.Linear(32, 32)
    slot = next(s for s in find_slots(model).slots if "idle" in s.name)
    assert "never called" in refusal(calibrate(model), slot, "second_moment")
    assert "all zero" in refusal(calibrate(model), slot, "fisher")


def test_an_expert_that_few_tokens_are_routed_to_is_refused(calibrate):
    model = tiny("mixtral")
    calibration = calibrate(model, some_windows(samples=1, length=40), inventory=find_slots(model))
    slots = [s for s in find_slots(model).slots if "[gate]" in s.name]
    assert "fewer than its 32 inputs" in refusal(calibration, slots[0], "second_moment")


def test_statistics_that_are_not_finite_are_refused(calibrate):
    model = tiny("llama")
    model.model.layers[1].mlp.up_proj.weight.data[:] = 1e30
    slot = slot_of(model, "mlp.down")
    assert "not finite" in refusal(calibrate(model), slot, "second_moment")


def test_a_model_that_fails_on_the_text_is_a_reason_and_is_asked_once(calibrate, monkeypatch):
    model, calls = tiny("llama"), []

    def forward(*args, **kwargs):
        calls.append(1)
        raise RuntimeError("no luck")

    monkeypatch.setattr(type(model), "forward", forward)
    calibration = calibrate(model)
    for _ in range(2):
        assert "no luck" in refusal(calibration, slot_of(model, "mlp.down"), "second_moment")
    assert len(calls) == 1
