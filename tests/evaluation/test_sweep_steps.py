"""What the sweep engine says of its work: whose seconds they are, where it is, how much it has done."""

import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from lrbench.evaluation.interface import Step
from lrbench.evaluation.sweep import engine
from lrbench.evaluation.sweep import sizes as memory
from lrbench.evaluation.sweep.sweeper import Sweeper
from lrbench.reports.progress import TerminalProgress
from lrbench.system.device import is_out_of_memory
from tests.support.suites import MISBEHAVING, Heard, run, write_suite


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when the engine works: ten seconds to a new block, one to score a part."""
    now = SimpleNamespace(seconds=0.0, block=0, part=None)
    advance, score = Sweeper.advance, Sweeper.score

    def advancing(self, part, block, *rest):
        if part is not now.part:
            now.part, now.block = part, 0
        now.seconds += 10 * (block > now.block)
        now.block = max(block, now.block)
        return advance(self, part, block, *rest)

    def scoring(self, *arguments):
        now.seconds += 1
        return score(self, *arguments)

    monkeypatch.setattr(engine, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    monkeypatch.setattr(Sweeper, "advance", advancing)
    monkeypatch.setattr(Sweeper, "score", scoring)
    return now


def seconds(result):
    return [
        (row.label, row.edits and row.edits[0].layer, row.evaluate_seconds) for row in result.directory.rows().values()
    ]


def test_the_way_up_to_a_block_is_shared_by_the_cells_that_start_there(tmp_path, clock):
    result = run(write_suite(tmp_path), tmp_path / "out")
    assert seconds(result) == [(None, [], 1), ("svd", 2, 6), ("cr", 2, 6), ("svd", 5, 6), ("cr", 5, 6)]
    assert clock.seconds == 25


def test_what_a_cell_that_failed_would_have_paid_is_shared_by_those_after_it(tmp_path, clock):
    plugin = tmp_path / "bad.py"
    plugin.write_text(MISBEHAVING)
    suite = write_suite(tmp_path, reducers="[svd, raises, cr]", layers="[2]")
    result = run(suite, tmp_path / "out", plugin)
    assert seconds(result) == [
        (None, [], 1), ("svd", 2, pytest.approx(1 + 10 / 3)), ("raises", [], 0), ("cr", 2, pytest.approx(1 + 20 / 3)),
    ]  # fmt: skip


def test_in_parts_too_all_seconds_are_some_cells(tmp_path, clock, monkeypatch):
    monkeypatch.setitem(memory.TOKENS, "cpu", 128)
    result = run(write_suite(tmp_path), tmp_path / "out", overrides=["frontier_memory=1.0e-7"])
    rows = result.directory.rows().values()
    assert sum(row.evaluate_seconds for row in rows) == pytest.approx(clock.seconds)
    by_block = {}
    for row in rows:
        by_block.setdefault(row.edits[0].layer if row.edits else None, set()).add(round(row.evaluate_seconds, 6))
    assert all(len(alike) == 1 for alike in by_block.values())


def test_each_step_says_where_it_was_and_how_much_it_did(tmp_path):
    heard = Heard()
    run(
        write_suite(tmp_path, layers="[5]", weights="[mlp.down, head]", reducers="[svd]"), tmp_path / "out", heard=heard
    )
    baseline, block, head = heard.steps
    assert [(step.block, step.blocks, step.part, step.parts) for step in heard.steps] == [
        (0, 8, 1, 1), (5, 8, 1, 1), (8, 8, 1, 1),
    ]  # fmt: skip
    assert block.tokens == pytest.approx(baseline.tokens * 3 / 8)
    assert head.tokens == 0
    assert all(step.seconds > 0 for step in heard.steps)


@pytest.mark.parametrize(
    ("error", "ran_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator"), False),
    ],
)
def test_memory_that_ran_out_is_known_on_every_device(error, ran_out):
    assert is_out_of_memory(error) is ran_out


def test_torch_says_what_it_says_when_the_machines_memory_runs_out():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


def shown(*steps, terminal=False):
    out = io.StringIO()
    with TerminalProgress(Console(file=out, width=200, force_terminal=terminal)) as progress:
        progress.planned("almanac", 12, 0, {})
        for step in steps:
            progress.scoring(step)
            if terminal:
                progress._bar.refresh()
            else:
                progress._last_line = -100.0
                progress._line()
    return out.getvalue()


def test_the_terminal_shows_the_block_and_the_speed():
    for terminal in (True, False):
        text = shown(Step(6, 12, 1, 1, 9000.0, 0.5), terminal=terminal)
        assert "block 7/12 · 18k tokens/s" in text
        assert "part" not in text
    assert "0 of 12 cells, block 7/12 · 18k tokens/s\n" in text


def test_it_shows_the_part_where_there_are_several_and_no_speed_where_no_block_ran():
    assert "part 2/5 · block 1/12 · 450 tokens/s" in shown(Step(0, 12, 2, 5, 450.0, 1.0))
    assert shown(Step(12, 12, 1, 1, 0.0, 0.5)).endswith("0 of 12 cells, head\n")


def test_the_speed_is_that_of_the_last_seconds():
    slow, fast = Step(0, 12, 1, 1, 100.0, 1.0), Step(0, 12, 1, 1, 20_000.0, 10.0)
    assert "2k tokens/s" in shown(slow, fast).splitlines()[-1]
