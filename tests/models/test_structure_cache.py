"""Structures of models in the cache folder: equal to those of transformers, and never out of date."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from lrbench.errors import ModelError
from lrbench.models import load, structure_cache
from lrbench.models.load import load_structure
from lrbench.models.slots import count_parameters
from lrbench.models.structure_cache import cached_structure
from lrbench.suite.bundled import bundled
from lrbench.suite.load import ModelSpec
from tests.support.architectures import ARCHITECTURES, LLAMA

TINY = {"model_type": "llama", **LLAMA}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def loads(monkeypatch):
    """Counts how often transformers makes the model."""
    calls = []
    monkeypatch.setattr(load, "load_structure", lambda spec, *_, **options: calls.append(spec) or load_structure(spec))
    return calls


def checkpoint(folder, **changed):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**TINY, **changed}))
    return ModelSpec(pretrained=str(folder))


def all_of(inventory):
    """Everything that a plan reads."""
    places = [slot.place for slot in inventory.slots]
    slots = [
        (slot.about, slot.module_name, slot.parameter, slot.layout, slot.part, slot.users, slot.no_input, slot.size,
         slot.tensor().shape, slot.tensor().dtype, slot.read().shape, places.index(slot.place))
        for slot in inventory.slots
    ]  # fmt: skip
    model = inventory.slots[0].model
    blocks = [count_parameters(block) for block in inventory.blocks]
    return slots, blocks, inventory.left_out, inventory.unnamed, count_parameters(model), model.config.model_type


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cached_structure_is_that_of_transformers(name, loads):
    architecture = ARCHITECTURES[name]
    spec = ModelSpec(config={"model_type": architecture.kind, **architecture.settings})
    expected = all_of(load_structure(spec))

    assert all_of(cached_structure(spec)) == expected
    assert all_of(cached_structure(spec)) == expected
    assert len(loads) == 1


@pytest.mark.parametrize("change", ["configuration", "transformers", "torch", "lrbench"])
def test_it_is_made_again_when_what_it_follows_from_changes(change, tmp_path, monkeypatch, loads):
    spec = checkpoint(tmp_path / "model")
    before = cached_structure(spec)
    installed = structure_cache.installation

    if change == "configuration":
        checkpoint(tmp_path / "model", num_hidden_layers=3)
    elif change == "lrbench":
        (tmp_path / "new.py").write_text("")
        monkeypatch.setattr(structure_cache, "_CODE", [*structure_cache._CODE, tmp_path / "new.py"])
    else:
        monkeypatch.setattr(structure_cache, "installation", lambda name: installed(name) + "x" * (name == change))

    after = [cached_structure(spec), cached_structure(spec)]
    assert len(loads) == 2
    assert [len(inventory.blocks) for inventory in after] == [
        3 if change == "configuration" else len(before.blocks)
    ] * 2


@pytest.mark.parametrize("change", ["no configuration", "adapter", "no folder"])
def test_a_model_that_is_no_longer_valid_is_refused(change, tmp_path):
    spec = checkpoint(tmp_path / "model")
    cached_structure(spec)

    if change == "adapter":
        (tmp_path / "model" / "adapter_config.json").write_text("{}")
    else:
        (tmp_path / "model" / "config.json").unlink()
    if change == "no folder":
        (tmp_path / "model").rmdir()

    with pytest.raises(ModelError):
        cached_structure(spec)


@pytest.mark.parametrize(
    "changed",
    [
        {"auto_map": {"AutoConfig": "x.X"}},
        {"_attn_implementation": "flash_attention_2"},
        {"quantization_config": {"quant_method": "gptq"}},
        {"configuration_files": ["config.4.json"]},
    ],
)
def test_a_configuration_that_depends_on_more_is_not_cached(changed, tmp_path, monkeypatch):
    calls = Counter()
    monkeypatch.setattr(load, "load_structure", lambda spec, *_, **options: calls.update([spec.pretrained]))
    spec = checkpoint(tmp_path / "model", **changed)

    assert [cached_structure(spec), cached_structure(spec)] == [None, None]
    assert calls == {spec.pretrained: 2}
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(pretrained="org/name"),
        ModelSpec(pretrained="org/name", gguf="file.gguf"),
        ModelSpec(pretrained=str(bundled()["almanac"]), trust_remote_code=True),
        ModelSpec(pretrained=str(bundled()["almanac"]), adapter="org/adapter"),
        ModelSpec(pretrained=str(bundled()["almanac"]), revision="main"),
        ModelSpec(config={**TINY}, attn_implementation="flash_attention_2"),
    ],
)
def test_a_model_that_depends_on_more_than_its_files_is_not_cached(spec, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(load, "load_structure", lambda spec, *_, **options: calls.append(spec))

    assert [cached_structure(spec), cached_structure(spec)] == [None, None]
    assert calls == [spec, spec]
    assert not list(tmp_path.glob("cache/structures/*"))


def test_with_packages_that_may_be_edited_in_place_nothing_is_cached(monkeypatch, loads):
    monkeypatch.setattr(structure_cache, "installation", lambda name: None)

    assert all_of(cached_structure(ModelSpec(config=TINY))) == all_of(cached_structure(ModelSpec(config=TINY)))
    assert len(loads) == 2


def test_a_gguf_file_that_changes_is_read_again(tmp_path, loads):
    pytest.importorskip("gguf")
    from tests.support.gguf_files import write_gguf

    spec = ModelSpec(gguf=str(write_gguf(tmp_path / "model.gguf")))
    expected = all_of(load_structure(spec))

    assert all_of(cached_structure(spec)) == expected
    assert all_of(cached_structure(spec)) == expected
    assert len(loads) == 1
    os.utime(tmp_path / "model.gguf", (1, 1))
    assert all_of(cached_structure(spec)) == expected
    assert len(loads) == 2


def test_checking_a_suite_again_does_not_import_transformers():
    code = (
        "import sys; from lrbench.cli import main\n"
        "assert main(['check', 'quickstart']) == 0\n"
        "print('transformers' in sys.modules, file=sys.stderr)"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)
    ]

    assert [output.stderr.strip().splitlines()[-1] for output in outputs] == ["True", "False"]
    assert outputs[0].stdout == outputs[1].stdout
