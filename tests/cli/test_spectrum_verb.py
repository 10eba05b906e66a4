"""`lrbench spectrum`: formats, figures, and what it refuses."""

import csv
import html.parser
import io
import json
import re
import sys

import pytest
import torch
from transformers import AutoTokenizer

from lrbench.analysis.spectra import GRID, NAMES, measure
from lrbench.cli import main
from lrbench.errors import InputError
from lrbench.models.load import bundled
from lrbench.reduction.single_matrix import slot_of
from lrbench.reports.figures import energy, to_bytes
from tests.support.tiny_models import tiny


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def printed(capsys, *arguments):
    assert main(["spectrum", *arguments]) == 0
    return capsys.readouterr().out


def checkpoint(folder, family, change=None):
    """A tiny random model on disk, with a tokenizer."""
    model = tiny(family)
    if change is not None:
        change(model)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundled()["almanac"]).save_pretrained(folder)
    return str(folder)


def test_almanac_is_told_by_role_with_every_claim_answered(capsys):
    data = json.loads(printed(capsys, "almanac", "--format", "json"))
    assert [role["role"] for role in data["roles"]] == [
        "attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down",
    ]  # fmt: skip
    assert [role["count"] for role in data["roles"]] == [8] * 7
    assert len(data["slots"]) == 56
    assert {claim["verdict"] for claim in data["claims"]} <= {"yes", "no"}
    assert len(data["claims"]) == 4
    assert data["model"]["dtype"] == "float32"
    assert len(data["model"]["weight_hash"]) == 64
    assert {"processor", "packages"} <= set(data["environment"])
    for role in data["roles"]:
        members = [slot for slot in data["slots"] if slot["role"] == role["role"]]
        for name in NAMES:
            values = [slot[name] for slot in members]
            assert role["mean"][name] == pytest.approx(sum(values) / 8)
            assert (role["min"][name], role["max"][name]) == (min(values), max(values))
            assert role["random"][name] == pytest.approx(members[0]["random"][name])


def test_the_formats_say_the_same(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # or names are broken in a narrow terminal
    chosen = ["almanac", "--layers", "last 2", "--weights", "attn.q", "mlp"]
    data = json.loads(printed(capsys, *chosen, "--format", "json"))
    lines = list(csv.DictReader(io.StringIO(printed(capsys, *chosen, "--format", "csv"), newline="")))
    assert len(lines) == 4 * 4
    for role in data["roles"]:
        for line in (line for line in lines if line["role"] == role["role"]):
            assert {name: float(line[name]) for name in NAMES} == role[line["statistic"]]
    slots = list(csv.DictReader(io.StringIO(printed(capsys, *chosen, "--format", "csv", "--per-slot"), newline="")))
    assert [slot["weight"] for slot in slots] == [slot["weight"] for slot in data["slots"]]
    assert float(slots[0]["random:stable_rank"]) == data["slots"][0]["random"]["stable_rank"]
    rank = f"{data['roles'][0]['mean']['stable_rank']:.1f}"
    for form in ("terminal", "markdown"):
        text = printed(capsys, *chosen, "--format", form)
        assert rank in text
        for claim in data["claims"]:
            assert claim["criterion"].split(",")[0].split("_")[0] in " ".join(text.split())
        assert "layers.7.mlp.down" not in text
        with_slots = " ".join(printed(capsys, *chosen, "--format", form, "--per-slot").replace("\\", "").split())
        for name in ("6.self_attn.q_proj", "6.mlp.gate_proj", "7.mlp.down_proj"):
            assert f"{name} " in with_slots
        assert "All names begin with model.layers. and end in .weight." in with_slots


@pytest.mark.parametrize(
    ("names", "ends"),
    [
        (["a.0.q.weight", "a.1.k.weight"], ("a.", ".weight")),
        (["a.0.q.weight"], ("", "")),
        (["a.b.weight", "a.b.weight"], ("a.b.", "")),
        (["a.weight", "b.bias"], ("", "")),
        (["w", "w.x"], ("", "")),
        (["h.10.x", "h.1.x"], ("h.", ".x")),
    ],
)
def test_what_names_share_is_said_once(names, ends):
    from lrbench.reports.render.spectrum import _shared_ends

    assert _shared_ends(names) == ends


def test_output_goes_to_a_file_and_nothing_to_the_screen(capsys, tmp_path):
    out = printed(capsys, "almanac", "--layers", "[0]", "--format", "markdown", "--output", "table.md")
    assert out == ""
    assert (tmp_path / "table.md").read_text().startswith("# Spectrum of almanac (float32): 7 matrices\n")


def test_a_narrow_terminal_loses_no_row(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    out = printed(capsys, "almanac", "--layers", "0")
    assert all(len(line) <= 60 for line in out.splitlines())
    assert "random" in out


def test_a_checkpoint_folder_without_roles_is_measured_under_its_names(capsys, tmp_path):
    folder = checkpoint(tmp_path / "gpt2", "gpt2")
    data = json.loads(printed(capsys, folder, "--format", "json"))
    blocks = {slot["layer"] for slot in data["slots"]}
    assert blocks == {0, 1, 2, 3}
    assert {"attn.o", "mlp.up", "mlp.down"} <= {role["role"] for role in data["roles"]}
    assert data["model"]["label"] == folder
    half = json.loads(printed(capsys, folder, "--dtype", "bfloat16", "--weights", "mlp.up", "--format", "json"))
    assert half["model"]["dtype"] == "bfloat16"
    exact = [slot["stable_rank"] for slot in data["slots"] if slot["role"] == "mlp.up"]
    assert [slot["stable_rank"] for slot in half["slots"]] == pytest.approx(exact, rel=0.01)


def test_a_zero_matrix_is_shown_as_having_no_spectrum(capsys, tmp_path):
    def change(model):
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight.zero_()

    folder = checkpoint(tmp_path / "m", "llama", change)
    data = json.loads(printed(capsys, folder, "--weights", "mlp.up", "--format", "json"))
    assert data["slots"][1]["stable_rank"] is None
    assert data["slots"][1]["rank_90"] == 0
    text = printed(capsys, folder, "--weights", "mlp.up", "--per-slot")
    assert "1 matrix of zeros" in text
    zero = [folder, "--weights", "mlp.up", "--layers", "1"]
    assert "cannot be told" in json.loads(printed(capsys, *zero, "--format", "json"))["claims"][0]["verdict"]
    assert main(["spectrum", *zero, "--figure", "a.svg"]) == 2
    assert "has no curve to draw" in capsys.readouterr().err


def test_a_weight_with_nan_is_named(capsys, tmp_path):
    def change(model):
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[2, 3] = float("nan")

    assert main(["spectrum", checkpoint(tmp_path / "m", "llama", change)]) == 2
    assert "model.layers.1.mlp.up_proj.weight: the weight holds nan at [2, 3]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["almanak"], "no folder and no bundled model 'almanak'; did you mean 'almanac'?"),
        ([""], "MODEL is empty"),
        (["./nowhere"], "./nowhere: no such folder"),
        (["."], "has no config.json"),
        (["almanac", "--revision", "main"], "--revision: almanac is bundled"),
        (["almanac", "--layers", "8"], "--layers: layer 8 is out of range"),
        (["almanac", "--layers", "lasst half"], "did you mean 'last half'?"),
        (["almanac", "--layers", "["], "--layers"),
        (["./no-such-model", "--layers", "0,15"], "--layers: layers '0,15' are not one of"),  # before it is loaded
        (["almanac", "--weights", "mlp.dwon"], "--weights: unknown role 'mlp.dwon'; did you mean 'mlp.down'?"),
        (["almanac", "--device", "cuda:77"], "cuda:77"),
        (["almanac", "--figure", "a.gif"], "must end in one of .svg, .png, .pdf, .html"),
        (["almanac", "--figure", "nowhere/a.svg"], "--figure: nowhere is not a folder"),
        (["almanac", "--output", "nowhere/a.md"], "--output: nowhere is not a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(["spectrum", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("lrbench: ")
    assert message in line


def test_without_altair_the_figure_is_refused_with_the_remedy_before_anything_is_computed(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert main(["spectrum", "almanac", "--figure", "a.svg"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "pip install 'lrbench[figures]'" in line


def test_tables_need_no_altair(capsys, monkeypatch):
    for module in ("altair", "vl_convert"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "attn.q" in printed(capsys, "almanac", "--layers", "0")


@pytest.mark.parametrize(
    ("suffix", "start"), [("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF"), ("html", b"<!DOCTYPE html>")]
)
def test_the_figure_is_written_in_every_kind(suffix, start, capsys, tmp_path):
    printed(capsys, "almanac", "--layers", "0-1", "--format", "csv", "--figure", f"a.{suffix}")
    data = (tmp_path / f"a.{suffix}").read_bytes()
    assert data.startswith(start)
    if suffix == "svg":
        text = data.decode()
        for words in ("attn.q (2 of 192 × 192)", "singular values kept", "energy held", "90 %", "random Gaussian"):
            assert words in text
        assert len(data) < 500_000
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{suffix}"]


class Loads(html.parser.HTMLParser):
    """What a page would fetch, and its scripts."""

    def __init__(self):
        super().__init__()
        self.found, self.scripts = [], 0

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.found += [value for name, value in attributes if name in ("src", "href", "data")]


def test_the_page_fetches_nothing_and_hostile_names_stay_text():
    hostile = "</script><script>alert(1)</script>"
    spectrum = measure(slot_of(torch.eye(6, 9), f"{hostile}.weight"))
    page = to_bytes(energy.chart([spectrum], hostile), "html").decode()
    loads = Loads()
    loads.feed(page)
    assert loads.found == []
    assert loads.scripts == 2
    assert hostile not in page
    assert "default-src 'none'" in page
    specification = re.search(r'vegaEmbed\("#figure", (\{.*\}), \{"mode"', page)[1]
    assert hostile in json.loads(specification)["title"]["text"]
    drawing = to_bytes(energy.chart([spectrum], hostile), "svg").decode()
    assert "<script" not in drawing


def test_the_curves_are_the_mean_and_range_of_the_layers():
    W = torch.randn(2, 10, 15, generator=torch.Generator().manual_seed(0))
    spectra = [measure(slot_of(matrix, "w")) for matrix in (*W, torch.zeros(10, 15))]
    records = energy.records(spectra)
    trained = [record for record in records if record["kind"].startswith("trained")]
    assert len(trained) == len(records) // 2 == len(GRID)
    for record, kept, *held in zip(trained, GRID, spectra[0].curve, spectra[1].curve, strict=True):
        assert record["kept"] == kept
        assert record["held"] == pytest.approx(sum(held) / 2)
        assert (record["low"], record["high"]) == (min(held), max(held))
    assert {record["role"] for record in records} == {"w (2 of 10 × 15)"}


def test_a_figure_cannot_be_written_over_a_folder(tmp_path):
    from lrbench.reports.figures import save

    (tmp_path / "a.svg").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        save(energy.chart([measure(slot_of(torch.eye(3), "w"))], "m"), tmp_path / "a.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
