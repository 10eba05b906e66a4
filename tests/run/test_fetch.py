"""`lrbench fetch` from a stand-in of the hub, and runs without network from the folder that it fills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import lrbench
from lrbench.cli import main
from lrbench.errors import InputError, MissingError
from lrbench.results.directory import RunDirectory
from lrbench.run.fetch import fetch
from lrbench.run.hub_needs import FetchedManifest, missing
from lrbench.suite.bundled import bundled
from lrbench.suite.load import load_suite
from lrbench.system.offline import without_network
from tests.support.hub import COMMIT, answer_from, hub, online

QUESTIONS = [{"goal": f"goal {i}", "sol1": "do this", "sol2": "do that", "label": i % 2} for i in range(6)]
FACTS = [
    {
        "case_id": case,
        "paraphrase_prompts": [f"one {case}", f"two {case}"],
        "requested_rewrite": {
            "prompt": "{} is in", "subject": f"place {case}",
            "target_true": {"str": "north"}, "target_new": {"str": "south"},
        },
    }
    for case in range(2)
]  # fmt: skip
TEXTS = [{"body": f"A sentence about number {i}. " * 20} for i in range(30)]
METRIC = """
import datasets
import evaluate


class Length(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"org/length": float(len(predictions[0]))}
"""
TASK = """\
task: lengths
dataset_path: json
dataset_kwargs: {data_files: {test: "hf://datasets/org/words/words.jsonl"}}
test_split: test
output_type: generate_until
doc_to_text: "{{word}}"
doc_to_target: "{{word}}"
generation_kwargs: {max_gen_toks: 3, until: ["."]}
metric_list:
  - {metric: org/length, hf_evaluate: true, aggregation: mean, higher_is_better: true}
"""
SUITE = """\
name: fetched
model: {pretrained: org/tiny, tokenizer: org/words-tokenizer, device: cpu}
task_paths: [tasks]
tasks: [{task: piqa, num_fewshot: 1}, counterfact_choice, {task: lengths, limit: 2}]
reducers: [{id: {calibrated: true}}]
calibration: {text: {dataset: org/texts, column: body}, samples: 8, length: 128}
sweep:
  - {mode: together, layers: [5], weights: [mlp.down], rank: {keep: [0.3]}}
"""
NEEDS = [
    "model org/tiny",
    "tokenizer org/words-tokenizer",
    "data set baber/piqa/default",
    "data set azhx/counterfact/default",
    "data set org/words/files-",
    "data set org/texts/default",
]


def lines(rows):
    return "\n".join(map(json.dumps, rows)).encode()


def repositories():
    model = {file.name: file.read_bytes() for file in bundled()["almanac"].iterdir()}
    tokenizer = {name: content for name, content in model.items() if name.startswith("tokenizer")}
    return {
        "models/org/tiny": {**model, "pytorch_model.bin": b"not read", "onnx/model.onnx": b"not read"},
        "models/org/words-tokenizer": tokenizer,
        "datasets/baber/piqa": {"train.jsonl": lines(QUESTIONS), "validation.jsonl": lines(QUESTIONS[:4])},
        "datasets/azhx/counterfact": {"train.jsonl": lines(FACTS[:1]), "test.jsonl": lines(FACTS[1:])},
        "datasets/org/words": {"words.jsonl": lines([{"word": "One"}, {"word": "Two"}, {"word": "Three"}])},
        "datasets/org/texts": {"train.jsonl": lines(TEXTS)},
        "spaces/org/length": {"length.py": METRIC.encode()},
    }


def write_suite(folder, text=SUITE):
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    (folder / "tasks" / "lengths.yaml").write_text(TASK)
    (folder / "suite.yaml").write_text(text)
    return folder / "suite.yaml"


def files_of(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def metrics_keep_their_files_here(tmp_path_factory):
    import evaluate.config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path_factory.mktemp("metrics"))
        yield


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """A suite, the folder fetched for it, and the lines that were shown."""
    folder = tmp_path_factory.mktemp("fetched")
    suite = load_suite(write_suite(folder))
    shown = []
    with pytest.MonkeyPatch.context() as patch, hub(repositories()) as state, online(patch, state):
        complete = fetch([suite], folder / "DIR", shown.append)
        assert complete, shown
    return folder / "suite.yaml", folder / "DIR", shown


def test_fetch_shows_the_size_of_each_need_then_fetches_it_and_only_what_is_read(fetched):
    suite, folder, shown = fetched

    sizes, rest = shown[1:7], shown[7:]
    assert shown[0] == f"not fetched, take it along: {suite.parent / 'tasks'}"
    for need, line in zip(NEEDS, sizes, strict=True):
        assert line.startswith(need)
        assert line.endswith(("B", "bytes"))
    assert rest[0].endswith(f"free in {folder}")
    assert "model org/tiny: 6 files, 15.9 MB" in sizes
    assert [line.removeprefix("fetching ").startswith(need) for need, line in zip(NEEDS, rest[1:], strict=False)]
    names = {Path(name).name for name in files_of(folder)}
    assert {"model.safetensors", "tokenizer.json", "length.py", "manifest.json"} <= names
    assert not names & {"pytorch_model.bin", "model.onnx", "train.jsonl", "README.md"}
    assert not [path for path in folder.rglob("*") if path.is_symlink() or path.name == ".partial"]


def test_the_manifest_names_repository_and_commit_of_everything(fetched):
    manifest = FetchedManifest.read(fetched[1])

    assert list(manifest.models) == ["org/tiny@main", "org/words-tokenizer@main"]
    assert {entry.commit for entry in [*manifest.models.values(), *manifest.datasets.values()]} == {COMMIT}
    piqa = manifest.datasets["baber/piqa/default"]
    assert (piqa.repository, sorted(piqa.splits), piqa.all) == ("baber/piqa", ["train", "validation"], False)
    assert manifest.datasets["azhx/counterfact/default"].all


def test_what_is_there_is_not_fetched_again_and_the_hub_is_not_asked(fetched, monkeypatch):
    suite, folder, _ = fetched
    shown = []

    with hub(repositories()) as state, online(monkeypatch, state):
        assert fetch([load_suite(suite)], folder, shown.append)

    assert state.downloads() == ["spaces/org/length/resolve/main/length.py"]  # evaluate looks for a newer one
    assert any(line.startswith("nothing to fetch") for line in shown)


def test_a_dry_run_fetches_nothing_even_if_nothing_is_missing(fetched, monkeypatch):
    suite, folder, _ = fetched

    with hub(repositories()) as state, online(monkeypatch, state):
        assert not fetch([load_suite(suite)], folder, print, dry_run=True)

    assert not [path for _, path, _ in state.asked if "tiny" in path]


def test_a_newer_commit_on_the_hub_does_not_take_the_place_of_the_fetched_one(fetched, tmp_path, monkeypatch):
    suite, folder, _ = fetched
    shutil.copytree(folder, tmp_path / "DIR")
    monkeypatch.setattr("tests.support.hub.COMMIT", "d" * 40)

    with hub(repositories()) as state, online(monkeypatch, state):
        assert fetch([load_suite(suite)], tmp_path / "DIR", print)

    assert {ref.read_text() for ref in (tmp_path / "DIR").glob("hub/models--*/refs/main")} == {COMMIT}


WITHOUT_SOCKETS = """
import socket, sys
def refused(*_, **__):
    print("NETWORK", file=sys.stderr)
    raise OSError("sockets are refused")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refused
from lrbench.cli import main
sys.exit(main(sys.argv[1:]))
"""


def command(*arguments, cwd, code=WITHOUT_SOCKETS, **variables):
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(Path(cwd, "home")), **variables}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip


def test_a_run_offline_uses_no_network_writes_nothing_there_and_gives_the_rows_of_the_hub(
    fetched, tmp_path, monkeypatch, capsys
):
    suite, folder, _ = fetched
    before = files_of(folder)

    offline = command("run", suite, "--offline", folder, "--out", tmp_path / "offline", cwd=tmp_path)

    assert offline.returncode == 0, offline.stderr
    assert "NETWORK" not in offline.stderr
    assert files_of(folder) == before
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "HF_HUB_CACHE"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "HF_DATASETS_CACHE")
    with hub(repositories()) as state, online(monkeypatch, state):
        assert main(["run", str(suite), "--out", str(tmp_path / "hub")]) == 0
        assert "2 cells done" in capsys.readouterr().out
        assert main(["run", str(suite), "--out", str(tmp_path / "offline")]) == 0
    assert "nothing to compute, 2 already there" in capsys.readouterr().out
    ours, theirs = (RunDirectory(tmp_path / name) for name in ("offline", "hub"))
    assert list(ours.rows()) == list(theirs.rows())
    assert [row.scores for row in ours.rows().values()] == [row.scores for row in theirs.rows().values()]
    model, same = (run.manifest()["models"][0] for run in (ours, theirs))
    assert model["commit"] == COMMIT
    for key in ("label", "pretrained", "revision", "commit", "tokenizer", "weight_hash", "setting"):
        assert model[key] == same[key]


def files_in(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_shards_an_adapter_a_base_a_gguf_file_and_a_configuration_come_from_the_folder(tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    pytest.importorskip("gguf")
    from tests.support.gguf_files import write_gguf

    model = AutoModelForCausalLM.from_pretrained(bundled()["almanac"])
    model.save_pretrained(tmp_path / "sharded", max_shard_size="4MB")
    lora = peft.LoraConfig(target_modules=["down_proj"], r=2, init_lora_weights=False)
    peft.get_peft_model(model, lora).save_pretrained(tmp_path / "lora")
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "almanac.gguf")
    given = repositories()
    given["models/org/sharded"] = given["models/org/words-tokenizer"] | files_in(tmp_path / "sharded")
    given["models/org/lora"] = files_in(tmp_path / "lora")
    given["models/org/almanac-GGUF"] = {**files_in(tmp_path / "gguf"), "other.gguf": b"not read"}
    common = {
        "tasks": [{"task": "almanac_text", "limit": 1}],
        "reducers": ["svd"],
        "sweep": [{"mode": "together", "layers": [5], "weights": ["mlp.down"], "rank": {"keep": [0.3]}}],
    }
    gguf = {"pretrained": "org/almanac-GGUF", "gguf": "almanac.gguf", "tokenizer": "org/words-tokenizer"}
    suites = [
        {"name": "tuned", "model": {"pretrained": "org/sharded", "revision": COMMIT, "adapter": "org/lora"},
         "delta": {"base": "org/tiny"}, **common},
        {"name": "others", "models": [gguf, {"config": "org/tiny", "label": "random"}], **common},
    ]  # fmt: skip
    with hub(given) as state, online(monkeypatch, state):
        assert fetch(list(map(load_suite, suites)), tmp_path / "DIR", print)

    names = {path.name for path in (tmp_path / "DIR").rglob("*.gguf")}
    assert names == {"almanac.gguf"}
    monkeypatch.setattr("socket.socket.connect", None)
    for suite in suites:
        assert lrbench.plan(suite, offline=tmp_path / "DIR").models
        results = lrbench.run(suite, offline=tmp_path / "DIR", out=tmp_path / suite["name"], device="cpu")
        assert {row.status for row in results} == {"ok"}
    assert "LRBENCH_OFFLINE" not in os.environ


def test_what_is_missing_is_listed_at_once_before_a_weight_is_loaded(fetched, tmp_path, monkeypatch, capsys):
    (tmp_path / "DIR").mkdir()
    suite = write_suite(tmp_path)
    FetchedManifest().write(tmp_path / "DIR")
    for verb in ("check", "run"):
        assert main([verb, str(suite), "--offline", str(tmp_path / "DIR")]) == 2
        told = capsys.readouterr().err.splitlines()
        assert [
            line.startswith(f"lrbench: --offline {tmp_path}/DIR: {need}")
            for need, line in zip(NEEDS, told, strict=True)
        ]
        assert all(line.endswith(": not fetched") for line in told)
    assert not (tmp_path / "results").exists()


def test_a_weight_file_that_was_cut_off_and_a_lost_split_are_missing(fetched, tmp_path):
    suite, folder, _ = fetched
    shutil.copytree(folder, tmp_path / "DIR")
    weights = next((tmp_path / "DIR").rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    shutil.rmtree(tmp_path / "DIR" / "datasets" / "baber" / "piqa" / "default" / "train")

    with without_network(tmp_path / "DIR"):
        assert missing(load_suite(suite), tmp_path / "DIR") == [
            "model org/tiny: model.safetensors missing or cut off",
            "data set baber/piqa/default: split 'train' not fetched",
        ]


def test_code_of_a_metric_that_is_missing_is_told_with_its_task(fetched, tmp_path):
    suite, folder, _ = fetched
    shutil.copytree(folder, tmp_path / "DIR", ignore=shutil.ignore_patterns("length.py"))

    with without_network(tmp_path / "DIR"):
        [line] = missing(load_suite(suite), tmp_path / "DIR")

    assert "task 'lengths': metric 'org/length' is none of lm-eval's, and its code cannot be loaded" in line


def test_all_that_the_hub_does_not_have_or_give_is_listed_at_once_and_nothing_is_fetched(tmp_path, monkeypatch, capsys):
    suite = write_suite(tmp_path, SUITE.replace("tokenizer: org/words-tokenizer", "adapter: org/secret, revision: v9"))
    given = repositories()
    del given["datasets/org/texts"]
    given["models/org/secret"] = {}
    with (
        hub(given, gated=frozenset({"baber/piqa"})) as state,
        online(monkeypatch, state),
        pytest.raises(MissingError) as told,
    ):
        fetch([load_suite(suite)], tmp_path / "DIR", print)

    revision, adapter, piqa, texts = told.value.lines
    assert revision == "org/tiny: the Hugging Face hub has no revision 'v9' of it"
    assert adapter == "org/secret: has no file adapter_config.json"
    assert piqa.startswith(
        "data set baber/piqa: DatasetNotFoundError: Dataset 'baber/piqa' is a gated dataset on the Hub"
    )
    assert texts.startswith("data set org/texts: DatasetNotFoundError: Dataset 'org/texts' doesn't exist on the Hub")
    assert all(path.startswith("spaces/") for path in state.downloads())


def test_a_gated_model_a_missing_one_and_one_without_safetensors_are_one_line_each(tmp_path, monkeypatch):
    names = ("gated", "gone", "pickled")
    models = ", ".join(f"{{pretrained: org/{name}}}" for name in names)
    suite = write_suite(tmp_path, SUITE.replace("model: {", f"models: [{models}]\n#"))
    given = {**repositories(), "models/org/gated": {}, "models/org/pickled": {"config.json": b"{}", "model.bin": b""}}
    with (
        hub(given, gated=frozenset({"org/gated"})) as state,
        online(monkeypatch, state),
        pytest.raises(MissingError) as told,
    ):
        fetch([load_suite(suite)], tmp_path / "DIR", print)

    gated, gone, pickled = told.value.lines
    assert "org/gated" in gated
    assert gone.startswith("org/gone: not a local folder, and the Hugging Face hub has no such model")
    assert pickled.startswith("org/pickled: its weights are not stored as safetensors")


def test_without_network_fetch_says_so_in_one_line(tmp_path, monkeypatch):
    suite = load_suite(write_suite(tmp_path))
    with hub({}) as state:
        pass

    with (
        online(monkeypatch, state),
        pytest.raises(InputError, match=r"^the Hugging Face hub cannot be reached: org/ti"),
    ):
        fetch([suite], tmp_path / "DIR", print)


def test_a_second_suite_adds_what_it_needs_of_the_same_repositories(tmp_path, monkeypatch):
    whole = write_suite(tmp_path)
    text = SUITE.replace("{pretrained: org/tiny, tokenizer: org/words-tokenizer", "{config: org/tiny, label: x")
    part = tmp_path / "part.yaml"
    part.write_text(text.replace("{dataset: org/texts, column: body}", "{dataset: baber/piqa, column: goal}"))
    with hub(repositories()) as state, online(monkeypatch, state):
        assert fetch([load_suite(part)], tmp_path / "DIR", print)
        first = FetchedManifest.read(tmp_path / "DIR").models["org/tiny@main"]
        assert (first.parts, list(first.files)) == (["configuration"], ["config.json"])
        assert fetch([load_suite(whole)], tmp_path / "DIR", print)

    second = FetchedManifest.read(tmp_path / "DIR").models["org/tiny@main"]
    assert second.parts == ["configuration", "model"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(second.files)


def test_the_environment_variable_stands_for_the_option_and_excludes_fetching(fetched, tmp_path, monkeypatch, capsys):
    suite, folder, _ = fetched
    monkeypatch.setenv("LRBENCH_OFFLINE", str(folder))
    monkeypatch.chdir(tmp_path)

    assert main(["check", str(suite)]) == 0
    assert main(["fetch", str(suite), "--to", str(tmp_path / "DIR")]) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "lrbench: LRBENCH_OFFLINE is set, which excludes the hub; unset it to fetch"
    )


def test_a_damaged_manifest_and_a_disk_that_is_too_small_are_one_line_each(fetched, tmp_path, monkeypatch, capsys):
    suite, _, _ = fetched
    (tmp_path / "manifest.json").write_text("{")
    assert main(["check", str(suite), "--offline", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lrbench: {tmp_path}/manifest.json: cannot be read; delete it, and fetch again: ")

    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    with (
        hub(repositories()) as state,
        online(monkeypatch, state),
        pytest.raises(InputError, match="MB do not fit into 1 kB; choose another disk"),
    ):
        fetch([load_suite(suite)], tmp_path / "DIR", print)
    assert not [path for path in state.downloads() if "/tiny/" in path]


@pytest.mark.parametrize("arguments", [["run"], ["check"]])
def test_a_folder_that_fetch_has_not_filled_is_refused(tmp_path, capsys, arguments):
    assert main([*arguments, "quickstart", "--offline", str(tmp_path)]) == 2
    assert f"--offline {tmp_path}: no manifest.json in it; give a folder that `lrbench fetch" in capsys.readouterr().err
    assert main([*arguments, "quickstart", "--offline", str(tmp_path / "x")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_download_that_breaks_off_goes_on_where_it_stopped(tmp_path, monkeypatch):
    suite = load_suite(write_suite(tmp_path))
    with hub(repositories(), broken="model.safetensors") as state, online(monkeypatch, state):
        assert fetch([suite], tmp_path / "DIR", print)

    assert "bytes=10485760-" in [span for _, path, span in state.asked if path.endswith("model.safetensors")]


@pytest.mark.slow
def test_a_killed_fetch_goes_on_with_the_file_under_way_and_leaves_nothing_behind(tmp_path):
    suite = write_suite(tmp_path)
    code = "import sys; from lrbench.cli import main; sys.exit(main(sys.argv[1:]))"
    with hub(repositories(), stall="model.safetensors") as state:
        variables = {**os.environ, "HF_HOME": str(tmp_path / "home"), **answer_from(state)}
        arguments = [sys.executable, "-c", code, "fetch", str(suite), "--to", "DIR"]
        first = subprocess.Popen(arguments, cwd=tmp_path, env=variables, stderr=subprocess.DEVNULL)
        assert state.stalled.wait(100)
        for _ in range(100):  # until the small files are there
            if list((tmp_path / "DIR").rglob("training.json")) and list((tmp_path / "DIR").rglob("tokenizer.json")):
                break
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
        first.wait()
        state.stall = None
        state.asked.clear()
        again = command("fetch", suite, "--to", "DIR", cwd=tmp_path, code=code, **answer_from(state))

    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("DIR is complete")
    assert [path.split("/")[-1] for path in state.downloads() if path.startswith("org/tiny/")] == ["model.safetensors"]
    assert not list((tmp_path / "DIR").rglob("*.incomplete"))
