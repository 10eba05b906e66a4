"""What is trusted and what is not, as SECURITY.md says it: no pickles, safe YAML, and names that are only ever text."""

from __future__ import annotations

import ast
import csv
import html.parser
import io
import json
import pickle
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console

import lrbench
from lrbench.cli import main
from lrbench.errors import InputError, ModelError
from lrbench.evaluation.interface import Step
from lrbench.export.card import card
from lrbench.export.exported_model import ExportedModel
from lrbench.models.adapter import find_adapter
from lrbench.models.base_model import load_base
from lrbench.models.load import load
from lrbench.reports.progress import TerminalProgress
from lrbench.reports.publish.names import slug
from lrbench.reports.render import FORMATS
from lrbench.reports.render.document import csv_text
from lrbench.reports.render.templating import tex
from lrbench.results.directory import RunDirectory
from lrbench.suite.load import ModelSpec, load_suite
from lrbench.system.text import clean, is_plain, one_line, printable
from tests.support.suites import write_suite
from tests.support.synthetic_run import edit, row, samples_of, scores_of

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("lrbench", "plugins", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

# --- no pickle, safe YAML, no code from text

#: Modules that run what they read.
BARRED = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle", "code"}
#: The one place where a file becomes code: a plugin that was named.
PLUGINS = ROOT / "lrbench" / "reducers" / "registry.py"


def calls(tree):
    """(dotted name, node) of each call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(node):
    return {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_there_are_sources_to_look_through():
    assert len(SOURCES) > 150
    assert PLUGINS in SOURCES


@pytest.mark.parametrize("folder", ["lrbench", "plugins", "benchmarks"])
def test_no_source_reads_pickles_or_runs_text(folder):
    for path in SOURCES:
        if path.is_relative_to(ROOT / folder):
            refuse_pickles_and_text(path)


def refuse_pickles_and_text(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {name.split(".")[0] for name in names} & BARRED
    for name, node in calls(tree):
        given = keywords(node)
        assert not re.fullmatch(r"torch\.(load|save|hub\.\w+|jit\.load)|(\w+\.)?(read_pickle|to_pickle)", name), name
        assert name not in ("eval", "compile", "__import__", "os.system", "os.popen", "input"), name
        assert name != "exec" or path == PLUGINS
        assert not re.fullmatch(r"yaml\.(unsafe_load|full_load|load_all|unsafe_load_all|full_load_all)", name), name
        assert given.get("shell", "False") == "False"
        assert given.get("allow_pickle", "False") == "False"
        assert given.get("weights_only", "True") == "True"
        if name == "yaml.load":
            assert given.get("Loader") in ("_SuiteLoader", "TaskLoader")
        if name == "np.load" and "benchmarks" not in path.parts:
            assert given.get("allow_pickle") == "False"
        if re.fullmatch(r"AutoModel\w*\.from_pretrained", name) and "benchmarks" not in path.parts:
            assert given.get("use_safetensors") == "True"
        if name.endswith(".from_pretrained") and "trust_remote_code" in given:
            assert given["trust_remote_code"] in ("source.trusted", "trusted")


@pytest.mark.parametrize(
    ("module", "name"), [("lrbench.suite.yaml_reader", "_SuiteLoader"), ("lrbench.tasks.lm_eval_index", "TaskLoader")]
)
def test_loaders_of_yaml_are_safe_ones(module, name):
    import importlib

    import yaml

    loader = getattr(importlib.import_module(module), name)
    assert issubclass(loader, yaml.constructor.SafeConstructor)
    assert not issubclass(loader, yaml.constructor.FullConstructor)


def refuse(*args, **kwargs):
    raise AssertionError("a pickle is read")


def test_a_run_a_table_and_an_export_read_no_pickle(tmp_path, monkeypatch, capsys):
    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr("_pickle.load", refuse)
    monkeypatch.setattr("_pickle.loads", refuse)
    monkeypatch.setattr("_pickle.Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    suite = write_suite(tmp_path, layers="[2]", reducers="[svd]")
    out = tmp_path / "out"
    assert main(["run", str(suite), "--out", str(out), "--device", "cpu"]) == 0
    [cell] = [row.cell for row in RunDirectory(out).rows().values() if row.reducer]
    assert main(["leaderboard", str(out)]) == 0
    assert main(["export", str(out), cell, str(tmp_path / "small"), "--format", "factored", "--device", "cpu"]) == 0
    assert lrbench.load(tmp_path / "small") is not None
    capsys.readouterr()


# --- weights are safetensors


@pytest.fixture
def pickled(tmp_path):
    """A checkpoint whose weights are a pickle, which would leave a mark where it is read."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "pickled"
    config = LlamaConfig(
        vocab_size=2048, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "lrbench/models/almanac/checkpoint").save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(Mark(tmp_path / "owned"), folder / "pytorch_model.bin")
    return folder


class Mark:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_of_pickles_is_refused_and_not_read(pickled, tmp_path):
    spec = ModelSpec(pretrained=str(pickled), device="cpu")
    with pytest.raises(ModelError, match=r"not stored as safetensors.*convert them") as caught:
        load(spec, device="cpu")
    assert "\n" not in str(caught.value)
    tuned = load(ModelSpec(name="almanac"), device="cpu")
    with pytest.raises(ModelError, match="not stored as safetensors"):
        load_base(ModelSpec(pretrained=str(pickled)), tuned)
    assert not (tmp_path / "owned").exists()


def test_the_command_line_says_so_in_one_line(pickled, tmp_path, capsys):
    suite = write_suite(tmp_path, model=f"{{pretrained: {pickled}, device: cpu}}", layers="[1]")
    assert main(["run", str(suite), "--out", str(tmp_path / "out")]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "its weights are not stored as safetensors" in last
    assert not (tmp_path / "owned").exists()


def test_an_adapter_of_pickles_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        find_adapter(str(tmp_path))


# --- a repository's own code


def test_trust_is_asked_for_twice_and_stands_in_what_is_recorded(tmp_path):
    suite = load_suite(write_suite(tmp_path, model="{name: almanac, trust_remote_code: true}"))
    assert suite.resolved()["models"][0]["trust_remote_code"] is True
    plain = load_suite(write_suite(tmp_path))
    assert plain.resolved()["models"][0]["trust_remote_code"] is None
    assert plain.hash != suite.hash
    with pytest.raises(ModelError, match="also needs --trust-remote-code on the command line"):
        load(suite.models[0], device="cpu")
    assert load(suite.models[0], device="cpu", trust_remote_code=True).source["trust_remote_code"] is True


# --- names and files

NO_FILES = [
    *("../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b", "n" * 300, "CON", "nul.jsonl", "com1"),
    *("dot.", "space ", " space", "a\nb", "-option", "~", "C:", "a:b", "\u202e", "ä", "*", "$HOME", "\udcff"),
]


@pytest.mark.parametrize("name", NO_FILES)
def test_a_cell_that_would_leave_its_directory_is_refused_by_every_verb(name, tmp_path, capsys):
    assert not is_plain(name)
    run = RunDirectory(tmp_path / "run")
    for use in (run.samples, run.has_samples, run.partial, run.drop_partial, lambda cell: run.write_samples(cell, [])):
        with pytest.raises(InputError, match="is no cell's hash"):
            use(name)
    assert not list(tmp_path.rglob("*.jsonl"))
    run.append(row("base"))
    line = json.loads(run.rows_file.read_text()) | {"cell": name}
    (tmp_path / "run" / "rows.jsonl").write_text(json.dumps(line) + "\n")
    before = sorted(tmp_path.rglob("*"))
    out = str(tmp_path / "out")
    for arguments in (
        ["leaderboard", str(run.path)],
        ["merge", str(run.path), "--out", out],
        ["publish", str(run.path), "--to", out],
        ["compare", str(run.path), str(run.path)],
        ["export", str(run.path), name or "x", out],
    ):
        if arguments[0] == "export" and name.startswith("-"):
            continue
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert message[:-1].isprintable()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", NO_FILES)
def test_names_of_files_on_a_site_are_safe(name):
    assert is_plain(slug(name))


def test_a_shard_whose_samples_are_a_link_is_refused(tmp_path, capsys):
    (tmp_path / "secret").write_text("secret\n")
    run = hostile_run(tmp_path / "run", "x")
    (run.path / "samples" / "base.jsonl").unlink()
    (run.path / "samples" / "base.jsonl").symlink_to(tmp_path / "secret")
    assert main(["merge", str(run.path), "--out", str(tmp_path / "out")]) == 2
    assert "a link" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- names are text, wherever they are shown

NAMES = {
    "markup": "<script>alert(1)</script>\" onmouseover='alert(1)' x=</td></table></style></title>-->]]>&lt;",
    "template": "{{ 7*7 }}{% raw %}<< x >><% y %> %s %d {0} {name} %(x)s",
    "latex": r"\input{/etc/passwd}\write18{rm}%&#$_^~{}",
    "markdown": "[x](javascript:alert(1)) **b** `c` | d <!-- e ![f](g) \\",
    "formula": "=HYPERLINK(\"http://x\",\"y\")",
    "tabbed": "\t\r=1+1",
    "terminal": "\x1b[31mred\x1b[0m\x1b[2J\x1bc\x1b]0;owned\x07\x1b]8;;http://x\x1b\\here\x1bP1$r\x1b\\ \x1b_x\x1b\\",
    "eight-bit": "\x9b2J \x9d0;owned\x9c \x07\x08\x7f\x00",
    "rich": "[bold]b[/bold] [/] [link=http://x]y[/link] :smile: [red",
    "lines": "\u202egpj.exe\u202c \u2066x\u2069\u200f one\ntwo\r\nthree\u2028four\u2029five\x85six\x0bseven",
    "long": "../../etc/" + "n" * 3000,
}  # fmt: skip

#: What a terminal or an editor acts on; line ends are looked at by each format.
ACTED_ON = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def hostile_run(path: Path, name: str) -> RunDirectory:
    """A run in which everything that someone names is called so; cells and files have names of their own."""
    run = RunDirectory(path)
    run.write_manifest(
        {
            "suite": {"name": name, "models": [{"label": name, name: name}], name: [name]},
            "suite_hash": name,
            "tasks": [{"task": name, "subtasks": [f"{name}1", f"{name}2"]}],
            "models": [{"label": name, "blocks": 8, "pretrained": name, "engine": {"name": name, name: {name: name}},
                        "tasks": {name: {"description": name}}}],
            "reducers": [{"label": name, "reducer": name, "params": {name: name}, "source": name, "source_hash": name}],
        }
    )  # fmt: skip
    run.add_environment(
        {"hash": "e0", "lrbench": name, "packages": {"torch": name, "transformers": name, "lm-eval": name}, "cores": 2,
         "processor": name, "device": name, name: name}
    )  # fmt: skip
    for cell, correct in (("base", [1, 1, 1, 0, 1, 1]), ("c1", [1, 0, 1, 0, 0, 1]), ("c2", [0, 0, 1, 0, 0, 1])):
        of_tasks = {task: [float(x) for x in correct] for task in (name, f"{name}1", f"{name}2")}
        scores = {task: found | {name: found["acc"]} for task, found in scores_of(of_tasks).items()}
        run.write_samples(cell, samples_of(of_tasks))
        about = {} if cell == "base" else {
            "reducer": name, "label": name, "mode": name, "params": {name: name}, "delta": name,
            "requested": {name: 0.5 if cell == "c1" else 0.25}, "keep_targets": 0.5, "keep_model": 0.9,
            "edits": [edit(1, name, weight=name), edit(2, name, weight=name)], "compression_ratio": 1.1,
        }  # fmt: skip
        run.append(row(cell, scores=scores, **{"model": name, "suite": name, **about}))
    for cell, status in (("c3", "failed"), ("c4", "skipped")):
        run.append(row(cell, status=status, reason=name, reducer=name, label=name, model=name, suite=name))
    return run


class Tags(html.parser.HTMLParser):
    """Every tag with the names of its attributes, and where scripts and styles begin."""

    def __init__(self, text):
        super().__init__()
        self.found: Counter = Counter()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found[tag, tuple(sorted(key for key, _ in attrs))] += 1


@pytest.fixture(scope="module", params=NAMES)
def called(request, tmp_path_factory):
    """(name, run, a run of the same kind in which all is called `plain`)."""
    folder = tmp_path_factory.mktemp("named")
    return NAMES[request.param], hostile_run(folder / "run", NAMES[request.param]), hostile_run(folder / "b", "plain")


def shown(arguments, capsys):
    """What a verb prints."""
    capsys.readouterr()
    assert main(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def is_text_in(form, text, plain):
    """Whether a format's output is made as that of plain names is, and has nothing that anyone would act on."""
    assert not ACTED_ON.search(text)
    match form:
        case "html":
            assert set(Tags(text).found) <= set(Tags(plain).found) | {("td", ("class", "data-value", "title"))}
            assert Tags(text).found["script", ()] == Tags(plain).found["script", ()]
        case "latex":
            unescaped = re.sub(r"\\[\\%&#$_{}]", "", text)
            commands = set(re.findall(r"\\([A-Za-z]+|.)", unescaped))
            known = set(re.findall(r"\\([A-Za-z]+|.)", re.sub(r"\\[\\%&#$_{}]", "", plain)))
            assert commands <= known | SIGNS
            body = unescaped.split("\n", 1)[1]
            assert "%" not in body
            assert body.count("{") == body.count("}")
            assert [line.count("&") for line in body.splitlines()] == [
                line.count("&") for line in re.sub(r"\\[\\%&#$_{}]", "", plain).split("\n", 1)[1].splitlines()
            ]
        case "markdown":
            code = re.sub(r"\\.", "", text)
            assert not re.search(r"<(?!br>)|`|!\[|\]\(", code)
            assert [line.count("|") for line in code.splitlines()] == [line.count("|") for line in plain.splitlines()]
        case "csv":
            lines = list(csv.reader(io.StringIO(text, newline="")))
            assert len({len(line) for line in lines}) == 1
            assert len(lines) == len(list(csv.reader(io.StringIO(plain, newline=""))))
            for field in (field for line in lines for field in line):
                assert re.fullmatch(r"-?(\d+(\.\d+)?(e[+-]?\d+)?|inf)", field) or not re.match(
                    r"[=+\-@＝＋－＠\s]", field
                )
                assert "\n" not in field
                assert "\r" not in field
        case "json":
            assert text.isascii()
            json.loads(text)
        case "terminal":
            assert "\r" not in text
            assert "\t" not in text


#: Commands of LaTeX that signs in names become.
SIGNS = {
    *("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "textquotedbl"),
    *("textasciigrave", "hat", "pm", "times", "sigma", "Delta", "Vert", "infty", "downarrow", "uparrow", "cdot"),
    *("blacklozenge", "textsuperscript"),
}


@pytest.mark.parametrize("form", FORMATS)
def test_a_leaderboard_shows_names_as_text(called, form, capsys):
    _name, run, plain = called
    texts = [shown(["leaderboard", str(each.path), "--format", form], capsys) for each in (run, plain)]
    is_text_in(form, *texts)


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "json"])
def test_a_comparison_shows_names_as_text(called, form, capsys):
    _name, run, plain = called
    rows = ["--rows", "c1", "c2", "--format", form]
    texts = [shown(["compare", str(each.path), *rows], capsys) for each in (run, plain)]
    is_text_in(form, *texts)
    other = shown(["compare", str(run.path), str(plain.path), "--format", form], capsys)
    assert not ACTED_ON.search(other)


def test_progress_shows_names_as_text(called):
    name, run, _ = called
    rows = run.rows()
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=200, color_system=None, legacy_windows=False)
        with TerminalProgress(console) as progress:
            progress.note(name)
            progress.planned(name, len(rows), 0, {name: [name]})
            progress.scoring(Step(block=1, blocks=8, tokens=10, seconds=0.1, part=1, parts=2))
            for each in rows.values():
                progress.finished(each)
        text = out.getvalue()
        if terminal:  # rich moves the cursor, shows and hides it, and nothing else
            text = re.sub(r"\x1b\[(\?25[lh]|\d*[AK]|2K|1A)|\r", "", text)
        assert not ACTED_ON.search(text)
        assert text.count("\n") <= 12 + len(name) // 150 * 8
        if "[" in name and "\x1b" not in name:
            assert clean(name) in " ".join(text.split())


def test_errors_show_names_as_text(called, tmp_path, capsys):
    name, run, _ = called
    for error in (InputError(name), ValueError(name), ModelError(f"{name}: {name}")):
        text = one_line(error)
        assert not ACTED_ON.search(text)
        assert "\n" not in text
        assert len(text) < 2100
    for arguments in (
        ["leaderboard", f"x{name}".replace("\0", "")],
        ["leaderboard", str(run.path), f"--sort=x{name}"],
        ["export", str(run.path), f"x{name}", str(tmp_path / "x")],
        ["check", "quickstart", "--set", f"name={name}"],
        ["plugins", "show", f"x{name}"],
        ["matrix", f"x{name}.npy".replace("\0", "")],
    ):
        code = main(arguments)
        message = capsys.readouterr().err
        assert code in (1, 2)
        assert message.count("\n") == 1
        assert "bug in lrbench" not in message
        assert not ACTED_ON.search(message)


def test_a_model_card_shows_names_as_text(called):
    name, run, plain = called
    cards = []
    for each, word in ((run, name), (plain, "plain")):
        found = each.rows()["c1"]
        exported = ExportedModel(
            base=word, base_folder=None, model=None, tokenizer=None, inventory=Blocks(), slots=(), row=found,
            reductions=[Reduced(one) for one in found.edits], suite=each.manifest()["suite"], made=word,
            environment=each.environments()["e0"],
        )  # fmt: skip
        cards.append(card(exported, "lora"))
    text, _usual = cards
    assert not ACTED_ON.search(text)
    assert "\r" not in text
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    import yaml

    assert set(yaml.safe_load(front)) == {"library_name", "base_model", "tags"}
    blocks = [re.findall(r"```python\n(.*?)```", each, re.S) for each in cards]
    assert len(blocks[0]) == len(blocks[1]) == 1
    for one, other in zip(*blocks, strict=True):
        assert [type(node) for node in ast.walk(ast.parse(one))] == [type(node) for node in ast.walk(ast.parse(other))]
    prose = re.sub(r"```.*?```|`[^`\n]*`|^    .*$", "", body, flags=re.S | re.M)
    prose = re.sub(r"\\.", "", prose)
    assert not re.search(r"[<`]|!\[|\]\(", prose)
    headings = [[line for line in each.splitlines() if line.startswith("#")] for each in cards]
    assert len(headings[0]) == len(headings[1])


class Blocks:
    """An inventory of nothing."""

    blocks = (None,) * 8


class Reduced:
    def __init__(self, record):
        self.edit = record


@pytest.mark.parametrize(
    "text", ["=1", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", " =1", "＝1", "＠x", "\x1b[m=1"]
)
def test_no_field_of_a_table_of_values_is_a_formula(text):
    for line in csv.reader(io.StringIO(csv_text([text], [[text]]))):
        assert line[0].startswith("'")


def test_the_small_tools_leave_nothing_that_acts(called):
    name, _, _ = called
    for text in (clean(name), printable(name), str(tex(name)), csv_text([name], [[name]]).replace("\r\n", "")):
        assert not ACTED_ON.search(text)
        assert "\n" not in text


def test_columns_set_by_spaces_stay_where_they_are():
    assert printable("a   b") == "a   b"
    assert printable("a\tb\x1b[1m  c\nd") == "a b  c d"
    assert clean("  a \x1b[1m b ") == "a b"
    assert printable("é ‖W − Ŵ‖ 日本") == "é ‖W − Ŵ‖ 日本"


@pytest.mark.parametrize("name", ["terminal", "rich", "lines"])
def test_what_plugins_say_of_themselves_is_text(name, tmp_path, capsys):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import lrbench\n"
        f"class Mine(lrbench.Reducer):\n    __doc__ = 'One. ' + {NAMES[name]!r}\n    name = 'mine'\n"
        f"    def reduce(self, weight, rank, context):\n        raise ValueError({NAMES[name]!r})\n"
        "@lrbench.hookimpl\ndef lrbench_reducers():\n    return [Mine]\n"
    )
    broken = tmp_path / "broken.py"
    broken.write_text(f"raise RuntimeError({NAMES[name]!r})\n")
    for arguments in (["list"], ["show", "mine"], ["test", "mine"]):
        main(["plugins", *arguments, "--plugin", str(plugin), "--plugin", str(broken)])
        said = capsys.readouterr()
        assert "mine" in said.out
        assert not ACTED_ON.search(said.out + said.err)
    suite = write_suite(tmp_path, reducers="[mine]", layers="[2]")
    assert main(["run", str(suite), "--plugin", str(plugin), "--out", str(tmp_path / "o"), "--device", "cpu"]) == 1
    said = capsys.readouterr()
    assert not ACTED_ON.search(said.out + said.err)
    for file in (tmp_path / "o").glob("leaderboard.*"):
        assert not ACTED_ON.search(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["markup", "lines"])
def test_a_site_shows_names_as_text_in_files_of_its_own(name, tmp_path, capsys):
    sites = []
    for word in (NAMES[name], "plain"):
        run = hostile_run(tmp_path / f"run{len(sites)}", word)
        sites.append(tmp_path / f"site{len(sites)}")
        assert main(["publish", str(run.path), "--to", str(sites[-1])]) == 0
    capsys.readouterr()
    known = {tag for page in sites[1].rglob("*.html") for tag, _ in Tags(page.read_text(encoding="utf-8")).found}
    for file in (file for file in sites[0].rglob("*") if file.is_file()):
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,80}", file.name)
        if file.suffix in _TEXT and "assets" not in file.parts:
            text = file.read_text(encoding="utf-8")
            assert not ACTED_ON.search(text), file
            if file.suffix == ".html":
                assert {tag for tag, _ in Tags(text).found} <= known


_TEXT = (".html", ".md", ".csv", ".tex", ".json", ".jsonl", ".yaml", ".svg")


def test_the_security_page_says_what_is_trusted():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for word in (
        "plugin",
        "task_paths",
        "trust_remote_code",
        "--trust-remote-code",
        "safetensors",
        "pickle",
        "publish",
    ):
        assert word in text, word
