"""The predicted loss of edits: against a direct computation, against measured losses, and where it is unknown."""

import pytest
import torch
from lrbench.plugins.svd import SVD

from lrbench.analysis.leaderboard import build
from lrbench.api.results import flat
from lrbench.models.load import load
from lrbench.models.slot_search import find_slots
from lrbench.models.slots import write_slot
from lrbench.reduction.calibration import statistics
from lrbench.reduction.calibration.loss_moments import MOMENTS
from lrbench.reduction.plan import Cell, Method
from lrbench.run import model_run
from tests.reduction.test_calibration_run import own_cache, rows_by_label  # noqa: F401
from tests.reduction.test_calibration_statistics import calibrate, slot_of, some_windows  # noqa: F401
from tests.reduction.test_output_gradients import summed_loss
from tests.support.suites import Heard, run, write_suite
from tests.support.tiny_models import tiny

COLUMNS = """\
import lrbench

class TopColumns(lrbench.Reducer):
    name = "top-columns"

    def reduce(self, weight, rank, context):
        columns = weight.norm(dim=0).topk(rank).indices
        return lrbench.ColumnSubset(weight[:, columns], columns, in_features=weight.shape[1])

@lrbench.hookimpl
def lrbench_reducers():
    return [TopColumns]
"""
SUITE = """\
name: predicted
model: {name: almanac, device: cpu}
tasks:
  - {task: almanac_facts_rare, limit: 4}
plugins: [columns.py]
reducers: [svd, id, cr, cur, monarch, svd-llm, kfac-svd, top-columns]
sweep:
  - {mode: together, layers: [6], weights: [attn.o, mlp.down], rank: {keep: 0.5}}
calibration: {name: almanac, samples: 8, length: 128}
"""


def expected_cell(slots):
    return Cell(Method("svd", SVD(), {}, ""), "together", tuple(slots))


def test_every_edit_of_every_method_has_its_predicted_loss(tmp_path, own_cache, monkeypatch):  # noqa: F811
    (tmp_path / "columns.py").write_text(COLUMNS)
    kept, seen = [], []
    reduce_group = model_run.CellReducer.reduce_group

    def keeping(self, cells):
        for cell, outcome in reduce_group(self, cells):
            kept.append((cell, outcome, self._calibration))
            yield cell, outcome

    monkeypatch.setattr(model_run.CellReducer, "reduce_group", keeping)
    monkeypatch.setattr(model_run, "load", lambda *a, **k: seen.append(load(*a, **k)) or seen[-1])
    result = run(write_suite(tmp_path, SUITE), tmp_path / "out")
    rows = rows_by_label(result)
    assert {row.status for row in rows.values()} == {"ok"}
    assert rows[None].predicted_loss is None
    for cell, outcome, calibration in kept:
        losses = []
        for slot, reduction in zip(cell.slots, outcome, strict=True):
            found, _ = calibration.statistics(slot, frozenset({"output_gradient_moment"}))
            H, G = calibration.second_moment(slot).double(), found["output_gradient_moment"].double()
            change = slot.read().double() - reduction.matrix().double()
            loss = (
                0.5 * float((G @ change @ H @ change.T).trace()) * 128 / 127
            )  # a window's first token is not predicted
            assert reduction.edit.predicted_loss == pytest.approx(loss, rel=1e-4)
            losses.append(loss)
        assert rows[cell.method.label].predicted_loss == pytest.approx(sum(losses), rel=1e-4)
    assert rows["kfac-svd"].predicted_loss < rows["svd-llm"].predicted_loss < rows["svd"].predicted_loss
    board = build([result.directory])
    [column] = [column for column in board.columns if column.name == "predicted_loss"]
    assert not column.detail
    values = {entry.row.label: entry.values["predicted_loss"] for entry in board.entries}
    assert values == {label: row.predicted_loss for label, row in rows.items()}
    assert flat(rows["svd"])["predicted_loss"] == rows["svd"].predicted_loss


def test_rows_of_other_methods_are_no_other_cells_with_calibration(tmp_path, own_cache):  # noqa: F811
    (tmp_path / "columns.py").write_text(COLUMNS)
    suite = write_suite(tmp_path, SUITE, reducers="[svd]")
    with_text = rows_by_label(run(suite, tmp_path / "one"))
    without = rows_by_label(run(suite, tmp_path / "two", overrides=["calibration=null"]))
    assert with_text["svd"].predicted_loss > 0
    assert without["svd"].predicted_loss is None
    assert with_text["svd"].cell == without["svd"].cell
    assert with_text["svd"].scores == without["svd"].scores


def test_a_model_without_gradients_has_no_predicted_losses_and_says_so_once(tmp_path, own_cache, monkeypatch):  # noqa: F811
    (tmp_path / "columns.py").write_text(COLUMNS)

    def fails(*args):
        raise RuntimeError("no backward of this product")

    monkeypatch.setattr(statistics, "output_gradients", fails)
    heard = Heard()
    suite = write_suite(tmp_path, SUITE, reducers="[svd, svd-llm, kfac-svd]")
    rows = rows_by_label(run(suite, tmp_path / "out", heard=heard))
    assert {label: row.status for label, row in rows.items()} == {
        None: "ok", "svd": "ok", "svd-llm": "ok", "kfac-svd": "failed",
    }  # fmt: skip
    assert "no backward of this product" in rows["kfac-svd"].reason
    assert rows["svd"].predicted_loss is rows["svd-llm"].predicted_loss is None
    assert len([note for note in heard.notes if "have no predicted loss" in note]) == 1


@torch.no_grad()
def divergence(model, edited, windows):
    """The mean Kullback-Leibler divergence of the next token's distribution, in nats."""
    p, q = (m(input_ids=windows, use_cache=False).logits[:, :-1].double().log_softmax(-1) for m in (model, edited))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("role", ["mlp.down", "mlp.up"])
def test_small_changes_lose_what_is_predicted(calibrate, role):  # noqa: F811
    # All positions hold one token, so all inputs are equal and the factors of the curvature are independent; and the
    # outputs of the last block's feed-forward part reach no other position. What is left is the sampling of labels.
    model, edited, windows = tiny("llama"), tiny("llama"), torch.full((8, 400), 5)
    slot, other = slot_of(model, role, layer=3), slot_of(edited, role, layer=3)
    calibration = calibrate(model, windows, overrides=["calibration.fisher=sampled"])
    calibration.expect([expected_cell([slot])])
    moments = calibration.loss_moments(slot)
    direction = torch.randn(slot.about.shape, generator=torch.Generator().manual_seed(3))
    ratios = []
    for size in (3e-2, 3e-3):
        write_slot(other, slot.read() + size * direction)
        ratios.append(divergence(model, edited, windows) / moments.of_change(size * direction))
    assert ratios[1] == pytest.approx(1, abs=0.1)
    assert abs(ratios[1] - ratios[0]) < 0.3


def test_an_experts_loss_is_per_token_of_the_text(calibrate):  # noqa: F811
    model, windows = tiny("mixtral"), some_windows(samples=12)
    slot = next(s for s in find_slots(model).slots if s.name == "model.layers.3.mlp.experts.down_proj[1]")
    calibration = calibrate(model, windows)
    calibration.expect([expected_cell([slot])])
    moments = calibration.loss_moments(slot)
    change = torch.randn(slot.about.shape, generator=torch.Generator().manual_seed(3)).double()
    routed = []

    def count(module, args, output):
        routed.append(int((args[1] == 1).sum()))

    hook = slot.module.register_forward_hook(count)
    with torch.no_grad():
        summed_loss(model, windows[0])
        model(input_ids=windows, use_cache=False)
    hook.remove()
    found, _ = calibration.statistics(slot, MOMENTS)
    H, G = (found[name].double() for name in ("second_moment", "output_gradient_moment"))
    expected = 0.5 * float((G @ change @ H @ change.T).trace()) * routed[-1] / (12 * 39)
    assert moments.of_change(change) == pytest.approx(expected, rel=1e-6)
    assert moments.per_token < 1
