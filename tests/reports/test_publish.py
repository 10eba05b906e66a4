"""`lrbench publish`: what is in a site, and what it is put over. The pages in a browser: test_publish_browser.py."""

from __future__ import annotations

import hashlib
import html.parser
import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest

from lrbench.analysis.spectrum_file import read
from lrbench.cli import main
from lrbench.errors import InputError
from lrbench.reports.figures import heat, keep, ticks, vector
from lrbench.reports.publish import files
from lrbench.reports.publish.names import Names, slug
from lrbench.reports.publish.provenance import Run
from lrbench.results.directory import RunDirectory
from lrbench.suite.load import load_suite
from tests.support.publishing import HOSTILE, each_run, hostile_run, select_by_cell
from tests.support.synthetic_run import demo_run

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
SPECTRUM = PUBLISHED / "almanac-spectrum" / "spectrum.json"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed quickstart, with a spectrum."""
    to = tmp_path_factory.mktemp("publish") / "site"
    assert main(["publish", str(PUBLISHED / "quickstart"), "--to", str(to), "--spectrum", str(SPECTRUM)]) == 0
    return to


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    hostile_run(folder / "run")
    assert main(["publish", str(folder / "run"), "--to", str(folder / "site"), "--title", "<b>title"]) == 0
    return folder / "site"


class _Page(html.parser.HTMLParser):
    """Tags with attributes, and text outside scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._script = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    def handle_data(self, data: str) -> None:
        if not self._script:
            self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def _pages(site: Path) -> list[Path]:
    """The site's own; the table as HTML is a download."""
    return sorted(path for path in site.rglob("*.html") if path.parent.name != "downloads")


def test_the_baseline_stands_first_in_a_body_of_its_own_and_every_row_is_there(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    pinned, rows = (re.search(rf'<tbody class="{name}">(.*?)</tbody>', text, re.S)[1] for name in ("pinned", "rows"))
    assert "baseline" in pinned
    assert pinned.count("<tr") == 1
    assert rows.count("<tr") == 18
    scores = json.loads((PUBLISHED / "quickstart" / "rows.jsonl").read_text().splitlines()[1])["scores"]
    facts = scores["almanac_facts"]["acc"]
    assert f"{100 * facts['value']:.1f}" in rows
    assert f"±{100 * facts['stderr']:.1f}" in rows


def test_every_link_and_source_leads_to_a_file_of_the_site(site: Path) -> None:
    for path in _pages(site):
        page = _Page(path)
        for tag, name in (("a", "href"), ("link", "href"), ("script", "src"), ("img", "src")):
            for attrs in page.of(tag):
                where = attrs.get(name)
                if where is None or where.startswith(("#", "data:")):
                    continue
                target, _, anchor = where.partition("#")
                file = (path.parent / target).resolve()
                assert file.is_file(), (path, where)
                assert site in file.parents
                if anchor:
                    assert any(attrs.get("id") == anchor for _, attrs in _Page(file).tags), where


def test_no_page_names_a_server_or_runs_a_script_of_its_own(site: Path) -> None:
    for path in _pages(site):
        page = _Page(path)
        assert not [attrs for _, attrs in page.tags if any(name.startswith("on") or name == "style" for name in attrs)]
        for attrs in page.of("script"):
            assert attrs.get("type") == "application/json" or attrs["src"].lstrip("./").startswith("assets/")
        (policy,) = (a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "http" not in policy
        links = [attrs.get(name) or "" for _, attrs in page.tags for name in ("href", "src")]
        assert not [link for link in links if re.match(r"(?i)\s*(https?:|//|javascript:)", link)]


def test_tables_have_scopes_and_pictures_alternatives(site: Path) -> None:
    for path in _pages(site):
        page = _Page(path)
        assert all(attrs.get("scope") in ("col", "row") for attrs in page.of("th"))
        assert all(attrs.get("alt") for attrs in page.of("img"))
        assert len(page.of("h1")) == 1
        assert page.of("html") == [{"lang": "en"}]


def test_a_row_has_its_whole_provenance(site: Path) -> None:
    row = json.loads((PUBLISHED / "quickstart" / "rows.jsonl").read_text().splitlines()[1])
    words = " ".join(_Page(site / "rows" / f"{row['cell']}.html").words)
    manifest = json.loads((PUBLISHED / "quickstart" / "manifest.json").read_text())
    (environment,) = map(json.loads, (PUBLISHED / "quickstart" / "environments.jsonl").read_text().splitlines())
    for edit in row["edits"]:
        assert edit["weight"] in words
    model = manifest["models"][0]
    documents = model["engine"]["tasks"]["almanac_facts_rare"]["hashes"]["documents"]
    for known in (
        *(row["cell"], model["weight_hash"], documents, environment["git"]["commit"], environment["packages"]["torch"]),
        *(manifest["reducers"][0]["source_hash"], "resuming is exact", "lrbench run", "last half"),
        f"{row['decompose_seconds']:.6g}",
    ):
        assert known in words, known


def test_failed_and_skipped_rows_are_shown_with_their_reasons(tmp_path: Path) -> None:
    demo_run(tmp_path / "run")
    assert main(["publish", str(tmp_path / "run"), "--to", str(tmp_path / "site")]) == 0
    words = " ".join(_Page(tmp_path / "site" / "index.html").words)
    assert "returned shape (64, 3), not (64, 128)" in words
    assert "needs a square weight" in words
    assert "1 failed, 1 skipped" in words
    assert "returned shape" in " ".join(_Page(tmp_path / "site" / "rows" / "broken.html").words)


def test_the_downloads_are_the_tables_and_the_suite_can_be_run_again(site: Path) -> None:
    names = {path.name for path in (site / "downloads").iterdir()}
    assert {f"leaderboard.{suffix}" for suffix in ("csv", "json", "md", "tex", "html")} <= names
    rows = (PUBLISHED / "quickstart" / "rows.jsonl").read_text().splitlines()
    assert len((site / "downloads" / "rows-quickstart.jsonl").read_text().splitlines()) == len(rows)
    suite = load_suite(site / "downloads" / "suite-quickstart.yaml")
    manifest = json.loads((PUBLISHED / "quickstart" / "manifest.json").read_text())
    assert [spec.display_name for spec in suite.models] == [model["label"] for model in manifest["models"]]
    assert suite.resolved()["reducers"] == manifest["suite"]["reducers"]


def test_figures_are_files_too(site: Path) -> None:
    figures = {path.name for path in (site / "downloads" / "figures").iterdir()}
    kinds = {name.rsplit("-", 2)[0].split("-")[0] for name in figures}
    assert {"keep", "error", "time", "effective", "energy"} <= kinds
    for path in (site / "downloads" / "figures").iterdir():
        assert path.read_bytes().startswith(b"<svg" if path.suffix == ".svg" else b"%PDF")


def test_the_same_runs_give_the_same_bytes(site: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main(["publish", str(PUBLISHED / "quickstart"), "--to", str(again), "--spectrum", str(SPECTRUM)]) == 0
    assert _hashes(again) == _hashes(site)
    assert {path.name for path in again.rglob("*.pdf")} == {path.name for path in site.rglob("*.pdf")}


def test_where_files_lie_on_the_machine_is_not_told(tmp_path: Path) -> None:
    run = demo_run(tmp_path / "secret-place" / "run")
    manifest = run.manifest() | {
        "suite": {"name": "demo", "plugins": ["mine.py"]},
        "paths": {"plugins.0": "/home/someone/mine.py"},
        "reducers": [{"label": "svd", "reducer": "svd", "params": {"file": "kept"}, "file": "/home/someone/mine.py"}],
    }
    run.write_manifest(manifest)
    assert main(["publish", str(run.path), "--to", str(tmp_path / "site")]) == 0
    told = b"".join(path.read_bytes() for path in (tmp_path / "site").rglob("*") if path.is_file())
    assert b"/home/someone" not in told
    assert b"secret-place" not in told
    assert b"kept" in told


# Names that anyone may have chosen.


def test_hostile_names_are_text(hostile: Path) -> None:
    for path in _pages(hostile):
        page = _Page(path)
        assert {tag for tag, _ in page.tags} <= _TAGS
        assert not [attrs for attrs in page.of("img") if not (attrs["src"] or "").startswith("downloads/")]
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", path.read_text(encoding="utf-8"))
    words = " ".join(_Page(hostile / "index.html").words)
    for name in ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7*7 }}", "n" * 300, "../../etc"):
        assert name in words, name


_TAGS = set(
    "html head meta title link script body a header nav button svg circle path span main div h1 h2 h3 p form "
    "label input details summary fieldset legend output section table caption thead tbody tr th td small sup dl dt dd "
    "i code footer ul li figure img figcaption pre strong".split()
)


def test_hostile_names_are_text_in_the_data_of_the_charts(hostile: Path) -> None:
    text = (hostile / "figures.html").read_text(encoding="utf-8")
    data = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.S)
    assert len(data) >= 4
    for block in data:
        assert "<" not in block
        json.loads(block)
    for path in (hostile / "downloads" / "figures").glob("*.svg"):
        svg = path.read_text(encoding="utf-8")
        assert "<script" not in svg
        assert not re.search(r'\son\w+="', svg)


def test_files_have_safe_names(hostile: Path) -> None:
    for path in hostile.rglob("*"):
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,80}", path.name), path.name


@pytest.mark.parametrize("name", [*HOSTILE, "", ".", "..", "CON", "nul", "a" * 49, "ä", "\udcff", "A", "a b"])
def test_a_slug_is_safe_and_its_own(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug(name))
    assert len(slug(name)) <= 57
    assert slug(name) != slug(name + "x")
    assert slug(name) not in ("con", "nul")


def test_names_are_told_apart_and_stay() -> None:
    names = Names()
    assert names("a", "run", "a") == "a"
    assert names("a", "other", "a") == "a-2"
    assert names("a", "run", "a") == "a"


# Where it is put.


def test_a_directory_with_something_else_in_it_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo_run(tmp_path / "run")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "thesis.tex").write_text("years")
    assert main(["publish", str(tmp_path / "run"), "--to", str(tmp_path / "site")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not empty and no site of lrbench" in error
    assert os.listdir(tmp_path / "site") == ["thesis.tex"]
    assert sorted(os.listdir(tmp_path)) == ["run", "site"]


def test_a_site_is_replaced_whole_and_what_stands_beside_it_stays(tmp_path: Path) -> None:
    to = tmp_path / "site"
    files.put({"index.html": b"one", "rows/old.html": b"old"}, to)
    (to / "CNAME").write_text("example.org")
    (to / ".git").mkdir()
    (to / ".git" / "HEAD").write_text("ref")
    files.put({"index.html": b"two", "rows/new.html": b"new"}, to)
    assert (to / "index.html").read_bytes() == b"two"
    assert os.listdir(to / "rows") == ["new.html"]
    assert (to / "CNAME").read_text() == "example.org"
    assert (to / ".git" / "HEAD").read_text() == "ref"
    assert os.listdir(tmp_path) == ["site"]


def test_a_file_put_into_a_site_by_hand_is_not_lost(tmp_path: Path) -> None:
    to = tmp_path / "site"
    files.put({"rows/a.html": b"a"}, to)
    (to / "rows" / "mine.html").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.html is in the way"):
        files.put({"rows/a.html": b"b"}, to)
    assert (to / "rows" / "a.html").read_bytes() == b"a"


def test_a_name_beside_the_site_that_the_new_one_needs_is_refused(tmp_path: Path) -> None:
    to = tmp_path / "site"
    files.put({"index.html": b"one"}, to)
    (to / "rows").mkdir()
    with pytest.raises(InputError, match="rows does not belong to the existing site"):
        files.put({"rows/a.html": b"two"}, to)
    assert (to / "index.html").read_bytes() == b"one"


@pytest.mark.parametrize("marker", ["", "{}", '{"files": 3}', '{"files": ["../x"]}', '{"files": ["/etc/x"]}', "[]"])
def test_a_marker_that_is_none_opens_nothing(tmp_path: Path, marker: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / files.MARKER).write_text(marker)
    with pytest.raises(InputError, match="no site of lrbench"):
        files.check(tmp_path / "site")


def test_an_interrupted_write_leaves_the_old_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = tmp_path / "site"
    files.put({"index.html": b"one"}, to)
    (to / "CNAME").write_text("example.org")
    rename, moved = os.rename, []

    def full(source: Path, target: Path) -> None:
        moved.append(target)
        if len(moved) == 3:  # the new site is in place, what stood beside the old one is not yet
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(InputError, match="No space left"):
        files.put({"index.html": b"two"}, to)
    monkeypatch.undo()
    assert (to / "index.html").read_bytes() == b"one"
    assert (to / "CNAME").read_text() == "example.org"
    assert os.listdir(tmp_path) == ["site"]


def test_a_place_that_cannot_be_a_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        files.check(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="link to nothing"):
        files.check(tmp_path / "link")
    with pytest.raises(InputError, match="cannot write"):
        files.put({"a": b""}, tmp_path / "file" / "site")


def test_a_run_given_twice_and_a_directory_without_a_run_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo_run(tmp_path / "run")
    assert main(["publish", *[str(tmp_path / "run")] * 2, "--to", str(tmp_path / "site")]) == 2
    assert main(["publish", str(tmp_path), "--to", str(tmp_path / "site")]) == 2
    error = capsys.readouterr().err
    assert "given twice" in error
    assert "no run here" in error
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 3}', "[" * 100_000, '{"model": {"label": "x"}}'])
def test_what_is_no_spectrum_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(InputError, match="is not a file of `lrbench spectrum MODEL --format json`"):
        read(tmp_path / "s.json")


def test_a_spectrum_in_a_runs_directory_is_taken_along(tmp_path: Path) -> None:
    demo_run(tmp_path / "run")
    shutil.copy(SPECTRUM, tmp_path / "run" / "spectrum.json")
    assert main(["publish", str(tmp_path / "run"), "--to", str(tmp_path / "site")]) == 0
    words = " ".join(_Page(tmp_path / "site" / "spectrum.html").words)
    assert "Trained weights are of low effective rank." in words
    assert "mlp.down" in words


# Runs and figures.


def test_runs_of_one_cell_have_a_page_each(tmp_path: Path) -> None:
    demo_run(tmp_path / "a", failures=False)
    demo_run(tmp_path / "b", failures=False)
    assert main(["publish", str(tmp_path / "a"), str(tmp_path / "b"), "--to", str(tmp_path / "site")]) == 0
    assert "run a" not in (tmp_path / "site" / "rows" / "svd-0-5-2.html").name
    names = {path.name for path in (tmp_path / "site" / "rows").iterdir()}
    assert len(names) == 2 * 19
    assert (tmp_path / "site" / "index.html").read_text().count('class="pinned"') == 1


def test_rows_of_several_seeds_have_a_page_each_that_lead_to_one_another(tmp_path: Path) -> None:
    run = demo_run(tmp_path / "run", failures=False)
    first = run.rows()["svd-0.5"]
    for seed in (1, 2):
        run.write_samples(f"again-{seed}", run.samples("svd-0.5"))
        run.append(first.model_copy(update={"cell": f"again-{seed}", "seed": seed}))
    assert main(["publish", str(run.path), "--to", str(tmp_path / "site")]) == 0
    assert (tmp_path / "site" / "index.html").read_text().count("<tr") == 1 + 1 + 18
    page = _Page(tmp_path / "site" / "rows" / "again-1.html")
    assert "The same cell at other seeds" in " ".join(page.words)
    links = {(attrs["href"] or "").removeprefix("../") for attrs in page.of("a")}
    assert "rows/again-2.html" in links
    assert all((tmp_path / "site" / link).is_file() for link in links if link.startswith("rows/"))


def test_a_run_keeps_only_the_rows_that_its_suite_asks_for(tmp_path: Path) -> None:
    run = demo_run(tmp_path / "run")
    run.write_manifest(run.manifest() | {"cells": ["baseline", "svd-0.5"]})
    assert list(Run.of(RunDirectory(run.path), "run", "run").rows) == ["baseline", "svd-0.5"]


def test_sweeps_of_single_weights_have_heat_maps(tmp_path: Path) -> None:
    each_run(tmp_path / "laser", layers=3)
    assert main(["publish", str(tmp_path / "laser"), "--to", str(tmp_path / "site")]) == 0
    names = [path.name for path in (tmp_path / "site" / "downloads" / "figures").glob("heat-*.svg")]
    assert len(names) == 3  # the score, and each of the two tasks
    text = (tmp_path / "site" / "figures.html").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r'"specification">(.*?)</script>', text, re.S) if "score" in b and "delta" in b)
    (values,) = json.loads(block)["datasets"].values()
    assert {(value["layer"], value["weights"]) for value in values} == {
        (layer, role) for layer in range(3) for role in ("attn.q", "attn.o", "mlp.up", "mlp.down")
    }


def test_colours_end_where_nearly_all_changes_lie() -> None:
    changes = [heat.Change("svd", "", layer, "mlp.up", float(layer), None) for layer in range(-49, 51)]
    assert heat.limit(changes) == 49
    assert heat.limit([heat.Change("svd", "", 0, "mlp.up", 0.0)]) == 1


def test_perplexities_that_span_much_stand_on_a_logarithmic_axis_with_the_error_of_the_logarithm() -> None:
    wide = [_point(0.5, 300, better="lower", low=150, high=450), _point(0.6, 3, better="lower", low=2.7, high=3.3)]
    assert keep.is_logarithmic(wide)
    assert not keep.is_logarithmic([_point(0.5, 300), _point(0.6, 3)])
    values = keep.chart(wide).to_dict()["datasets"]
    (records,) = values.values()
    assert records[0]["low"] == pytest.approx(300 / math.exp(0.5))
    assert records[0]["high"] == pytest.approx(300 * math.exp(0.5))


def test_ticks_of_axes_that_are_not_linear_are_round() -> None:
    assert ticks.logarithmic(0.0018, 0.07) == [0.002, 0.005, 0.01, 0.02, 0.05]
    assert ticks.logarithmic(3, 3) == []
    assert ticks.logarithmic(1e-6, 1) == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1]
    assert ticks.about_zero(-0.4, 40, 0.3) == [0, 0.3, 1, 3, 10, 30]


# Rows of a selection, and of other modes.


def test_what_a_choice_was_made_on_stands_apart_and_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = demo_run(tmp_path / "run", failures=False)
    run.append(run.rows()["baseline"].model_copy(update={"cell": "held-out"}))
    run.write_samples("held-out", run.samples("baseline"))
    select_by_cell(monkeypatch)
    assert main(["publish", str(run.path), "--to", str(tmp_path / "site")]) == 0
    text = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    reported, chosen = re.findall(r'<section class="model.*?</section>', text, re.S)
    assert "held-out documents" in reported
    assert reported.count('data-setting="keep 0.5"') == reported.count('data-setting="keep 0.25"') == 6
    assert 'data-setting="keep 0.75"' not in reported
    assert "<details><summary>" in chosen
    assert "biased upwards" in chosen
    assert chosen.count('data-setting="keep 0.75"') == 6
    assert 'data-model="model-almanac"' in chosen
    figures = (tmp_path / "site" / "figures.html").read_text(encoding="utf-8")
    assert "almanac, held-out documents" in figures
    assert "almanac, documents of the selection" in figures
    words = " ".join(_Page(tmp_path / "site" / "damage.html").words)
    assert words.index("held-out documents") < words.index("documents of the selection")


def test_a_composition_is_no_sweep_over_layers(tmp_path: Path) -> None:
    run = each_run(tmp_path / "laser", layers=3)
    for row in list(run.rows().values()):
        if row.mode:
            run.append(row.model_copy(update={"mode": "greedy"}))
    assert main(["publish", str(run.path), "--to", str(tmp_path / "site")]) == 0
    assert not list((tmp_path / "site" / "downloads" / "figures").glob("heat-*"))


def test_modes_can_be_chosen_where_there_are_several(tmp_path: Path) -> None:
    run = demo_run(tmp_path / "run")
    assert main(["publish", str(run.path), "--to", str(tmp_path / "site")]) == 0
    assert 'data-menu="mode"' not in (tmp_path / "site" / "index.html").read_text()
    run.append(run.rows()["svd-0.5"].model_copy(update={"mode": "greedy"}))
    assert main(["publish", str(run.path), "--to", str(tmp_path / "site")]) == 0
    text = (tmp_path / "site" / "index.html").read_text()
    assert 'data-menu="mode"' in text
    assert text.count('data-mode="greedy"') == 1


# Spectra and damage.


def test_the_page_on_damage_has_answers_tables_figures_and_downloads(tmp_path: Path) -> None:
    run = each_run(tmp_path / "laser", layers=6)
    assert main(["publish", str(run.path), "--to", str(tmp_path / "site")]) == 0
    page = _Page(tmp_path / "site" / "damage.html")
    words = " ".join(page.words)
    assert "Does the spectrum predict the damage?" in words
    assert "among cells of one method and setting" in words
    assert "No stable and effective ranks" in words
    downloads = tmp_path / "site" / "downloads"
    assert {"correlations", "damage"} <= {path.name.split("-")[0] for path in (downloads / "figures").iterdir()}
    assert len((downloads / "damage.csv").read_text().splitlines()) == 1 + 3 * 2 * 5 * 5
    assert len(json.loads((downloads / "damage.json").read_text())["models"][0]["cells"]) == 48


def test_the_command_on_every_page_has_the_options_that_made_it(site: Path, tmp_path: Path) -> None:
    assert "lrbench publish quickstart --to DIR --spectrum FILE" in " ".join(_Page(site / "runs.html").words)
    demo_run(tmp_path / "run")
    assert main(["publish", str(tmp_path / "run"), "--to", str(tmp_path / "site"), "--title", "A b"]) == 0
    assert "--to DIR --title 'A b'" in " ".join(_Page(tmp_path / "site" / "runs.html").words)


def _point(keep_model: float, value: float, **changes: object) -> keep.Point:
    values = {"panel": "acc", "method": "svd", "setting": "", "edited": "", "low": None, "high": None, **changes}
    return keep.Point(keep=keep_model, value=value, **values)


def test_the_front_is_of_one_panel_and_field_and_knows_which_way_is_better() -> None:
    points = [_point(0.5, 80), _point(0.6, 70), _point(0.7, 90), _point(0.7, 90), _point(0.6, 75, field="other")]
    assert keep.front(points) == {0, 2, 3, 4}
    falling = [_point(0.5, 8, better="lower"), _point(0.6, 9, better="lower"), _point(0.7, 3, better="lower")]
    assert keep.front(falling) == {0, 2}


def test_a_chart_becomes_the_same_svg_twice() -> None:
    chart = keep.chart([_point(0.5, 80, low=79, high=81), _point(0.6, 90, method="id", low=85, high=95)])
    assert vector(chart.to_dict())["svg"] == vector(chart.to_dict())["svg"]


def _hashes(site: Path) -> dict[str, str]:
    return {
        path.relative_to(site).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in site.rglob("*")
        if path.is_file() and path.suffix != ".pdf"
    }
