"""Spectral figures joined with damage: what is joined, how several edits become one figure, what is said of it."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from lrbench.analysis.damage import EVERY_ROLE, DamagePrediction, predictions, weight_hashes
from lrbench.analysis.leaderboard import build
from lrbench.analysis.spectrum_file import SpectrumRecord, read
from lrbench.cli import main
from lrbench.reports.render import damage as render
from lrbench.reports.render.document import Table
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Score
from tests.support.synthetic_run import demo_run, edit, row, samples_of, scores_of, simple_run

SPECTRUM = Path(__file__).parents[2] / "results" / "published" / "almanac-spectrum" / "spectrum.json"
HASH = "ab" * 32
RIGHT = [1.0] * 20
LAYERS = 8


def _answers(wrong: int) -> dict[str, list[float]]:
    return {"facts": [*[0.0] * wrong, *RIGHT[wrong:]]}


def sweep(path: Path, errors: dict[tuple[int, float], float], wrong: dict[tuple[int, float], int]) -> RunDirectory:
    """One role's matrices, each edited alone at several keeps, with errors and wrong answers as given."""
    cells = [(row("base"), _answers(0))]
    for (layer, keep), error in errors.items():
        one = edit(layer, "mlp.down", relative_error=error, optimal_error=error / 2)
        about: dict[str, Any] = {"reducer": "svd", "label": "svd", "mode": "each", "requested": {"keep": keep}}
        cells.append((row(f"{layer}-{keep}", edits=[one], **about), _answers(wrong[layer, keep])))
    run = simple_run(path, cells)
    run.write_manifest({"models": [{"label": "almanac", "blocks": LAYERS, "weight_hash": HASH}]})
    return run


def spectrum(path: Path, weight_hash: str = HASH, without: int | None = None) -> Path:
    """Of the matrices of `sweep`, the upper the layer the lower the ranks."""
    data = json.loads(SPECTRUM.read_text(encoding="utf-8"))
    data["model"]["weight_hash"] = weight_hash
    data["slots"] = [
        {
            "weight": f"model.layers.{layer}.mlp.down.weight", "layer": layer, "role": "mlp.down", "shape": [64, 128],
            "stable_rank": 32.0 / (layer + 1), "effective_rank": 48.0 - layer, "random": {},
        }
        for layer in range(LAYERS) if layer != without
    ]  # fmt: skip
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def one(run: RunDirectory, *spectra: SpectrumRecord) -> DamagePrediction:
    board = build([run])
    (found,) = predictions(board, render.titles(board), spectra, weight_hashes([run]))
    return found


@pytest.fixture
def graded(tmp_path: Path) -> RunDirectory:
    """At keep 0.5 and at 0.2, the larger the error of a layer's matrix the more answers are wrong."""
    errors = {(layer, keep): (0.9 - keep) + 0.01 * layer for layer in range(LAYERS) for keep in (0.5, 0.2)}
    return sweep(tmp_path / "run", errors, {key: round(20 * error) - 4 + key[0] for key, error in errors.items()})


def test_the_larger_error_goes_with_the_larger_damage(graded: RunDirectory) -> None:
    found = one(graded)
    assert found.roles == ["mlp.down"]
    within = found.correlation("facts", "one setting", "mlp.down", "relative_error")
    assert within.rho == 1
    assert (within.cells, within.subjects, within.sign) == (2 * LAYERS, LAYERS, 1)
    kept = found.correlation("facts", "one setting", "mlp.down", "energy_kept")
    assert kept.rho == -1
    assert found.correlation("facts", "all settings", "mlp.down", "relative_error").rho > 0.8
    assert "cause more damage in 1 of 1 role (mlp.down)" in render.answer(found, found.outcomes[0])


def test_damage_is_what_is_lost_whichever_way_the_score_is_better(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    for cell, right, perplexity in (("base", 20, 3.0), ("hurt", 15, 9.5), ("better", 20, 2.5)):
        correct = {"facts": [*RIGHT[:right], *[0.0] * (20 - right)]}
        changes = {} if cell == "base" else {"reducer": "svd", "label": "svd", "mode": "each", "edits": [edit()]}
        scores = scores_of(correct) | {"text": {"word_perplexity": Score(value=perplexity, n=4)}}
        run.write_samples(cell, samples_of(correct))
        run.append(row(cell, scores=scores, seed=0 if cell != "better" else 1, **changes))
    found = one(run)
    damage = {cell.entry.row.cell: cell.damage for cell in found.cells}
    # Of two seeds of one cell the leaderboard has a line: their means.
    assert damage == {"hurt": {"facts": pytest.approx(0.125), "text": pytest.approx(3.0)}}
    assert [(outcome.column.name, outcome.main) for outcome in found.outcomes] == [("facts", True), ("text", True)]


def test_figures_of_several_edits_are_means_weighted_by_their_numbers(tmp_path: Path) -> None:
    small = edit(0, "mlp.up", shape=(10, 10), relative_error=0.9, optimal_error=0.8, output_error=0.5)
    large = edit(0, "mlp.down", shape=(30, 30), relative_error=0.3, optimal_error=0.2, output_error=0.1)
    about = {"reducer": "svd", "label": "svd", "mode": "together", "requested": {"keep": 0.5}}
    run = simple_run(
        tmp_path / "run", [(row("base"), _answers(0)), (row("both", edits=[small, large], **about), _answers(3))]
    )
    (cell,) = one(run).cells
    assert cell.role == "mlp.up+down"
    assert cell.figures["relative_error"] == pytest.approx(math.sqrt((0.81 + 9 * 0.09) / 10))
    assert cell.figures["energy_kept"] == pytest.approx(1 - (0.64 + 9 * 0.04) / 10)
    assert cell.figures["output_error"] == pytest.approx(math.sqrt((0.25 + 9 * 0.01) / 10))
    assert "1 of 1 cells edit several matrices" in " ".join(render.remarks(one(run)))


def test_an_output_error_that_one_edit_lacks_is_none(tmp_path: Path) -> None:
    edits = [edit(0, "mlp.up", output_error=0.5), edit(0, "mlp.down")]
    about = {"reducer": "svd", "label": "svd", "mode": "together"}
    run = simple_run(tmp_path / "run", [(row("base"), _answers(0)), (row("a", edits=edits, **about), _answers(1))])
    found = one(run)
    assert found.cells[0].figures["output_error"] is None
    assert "No output error" in " ".join(render.remarks(found))


def test_ranks_come_from_the_spectrum_of_the_same_weights(graded: RunDirectory, tmp_path: Path) -> None:
    found = one(graded, read(spectrum(tmp_path / "s.json")))
    cell = next(cell for cell in found.cells if cell.weights[0].startswith("model.layers.3."))
    assert cell.figures["stable_rank"] == pytest.approx(8 / 64)
    assert cell.figures["effective_rank"] == pytest.approx(45 / 64)
    assert found.correlation("facts", "one setting", "mlp.down", "effective_rank").rho == -1
    other = one(graded, read(spectrum(tmp_path / "other.json", weight_hash="cd" * 32)))
    assert {cell.figures["stable_rank"] for cell in other.cells} == {None}
    assert "they require the spectrum of these weights" in " ".join(render.remarks(other))


def test_a_weight_that_the_spectrum_lacks_has_no_rank_and_the_page_says_how_many(
    graded: RunDirectory, tmp_path: Path
) -> None:
    found = one(graded, read(spectrum(tmp_path / "s.json", without=2)))
    assert sum(cell.figures["stable_rank"] is None for cell in found.cells) == 2
    assert "Stable rank: known for 14 of 16 cells." in render.remarks(found)
    assert found.correlation("facts", "one setting", "mlp.down", "stable_rank").cells == 14


def test_an_updates_ranks_are_not_its_models(graded: RunDirectory, tmp_path: Path) -> None:
    for cell in list(graded.rows().values()):
        graded.append(cell.model_copy(update={"delta": "base-model"}))
    found = one(graded, read(spectrum(tmp_path / "s.json")))
    assert {cell.figures["stable_rank"] for cell in found.cells} == {None}
    assert found.cells[0].figures["relative_error"] is not None


def test_few_matrices_have_no_interval_and_one_setting_of_one_set_of_weights_no_answer(tmp_path: Path) -> None:
    found = one(demo_run(tmp_path / "run"))
    assert found.roles == ["mlp"]
    pooled = found.correlation("score", "all settings", "mlp", "relative_error")
    assert pooled.rho is not None
    assert (pooled.interval, pooled.cells, pooled.subjects) == (None, 18, 1)
    assert found.correlation("score", "one setting", "mlp", "relative_error").rho is None
    assert "undecided" in render.answer(found, found.outcomes[0])
    table = next(part for part in render.document([found]).parts if isinstance(part, Table))
    assert table.rows[0][3].endswith(render.FEW)


def test_all_roles_together_are_a_line_where_there_are_several(tmp_path: Path) -> None:
    cells = [(row("base"), _answers(0))]
    for layer in range(6):
        for place, role in enumerate(("mlp.down", "attn.q")):
            one_edit = edit(layer, role, relative_error=0.1 * layer + 0.3 * place)
            about = {"reducer": "svd", "label": "svd", "mode": "each", "requested": {"keep": 0.5}}
            cells.append((row(f"{layer}{role}", edits=[one_edit], **about), _answers(layer + 8 * place)))
    found = one(simple_run(tmp_path / "run", cells))
    assert found.roles == ["attn.q", "mlp.down", EVERY_ROLE]
    whole = found.correlation("facts", "one setting", EVERY_ROLE, "relative_error")
    assert (whole.cells, whole.subjects) == (12, 12)
    assert whole.rho == pytest.approx(0.9, abs=0.1)
    assert "all 2 roles" in render.answer(found, found.outcomes[0])


# The verb.


def test_the_verb_prints_tables_and_writes_csv_json_and_a_figure(
    graded: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["damage", str(graded.path), "--spectrum", str(spectrum(tmp_path / "s.json"))]
    assert main([*given, "--figure", str(tmp_path / "c.svg")]) == 0
    printed = capsys.readouterr().out
    assert "Does the spectrum predict the damage?" in printed
    assert "mlp.down" in printed
    assert "+1.00 [" in printed
    assert "<svg" in (tmp_path / "c.svg").read_text(encoding="utf-8")
    assert main([*given, "--format", "csv", "--output", str(tmp_path / "c.csv")]) == 0
    with (tmp_path / "c.csv").open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["scope"] == "one setting"]
    assert {line["predictor"]: line["rho"] for line in lines} == {
        "relative_error": "1.0", "output_error": "", "energy_kept": "-1.0", "stable_rank": "-1.0",
        "effective_rank": "-1.0",
    }  # fmt: skip
    assert main([*given, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    (model,) = data["models"]
    assert len(model["cells"]) == 16
    assert model["cells"][0]["damage"]["facts"] == pytest.approx(0.2)
    assert {c["predictor"] for c in model["correlations"]} == {one["name"] for one in data["predictors"]}


def test_a_spectrum_of_other_weights_is_one_line(
    graded: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = spectrum(tmp_path / "s.json", weight_hash="cd" * 32)
    assert main(["damage", str(graded.path), "--spectrum", str(other)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cdcdcdcdcdcd" in error
    assert "create it again" in error


def test_a_run_without_damage_has_no_figure_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = simple_run(tmp_path / "run", [(row("base"), _answers(0))])
    assert main(["damage", str(run.path)]) == 0
    assert "No cell has edited weights" in capsys.readouterr().out
    assert main(["damage", str(run.path), "--figure", str(tmp_path / "c.svg")]) == 2
    assert "no correlation to draw" in capsys.readouterr().err


def test_a_spectrum_in_the_runs_directory_is_taken_along(
    graded: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(spectrum(tmp_path / "s.json"), graded.path / "spectrum.json")
    assert main(["damage", str(graded.path)]) == 0
    assert "effective" in capsys.readouterr().out
