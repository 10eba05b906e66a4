"""How a model's cells come to be scored: all of them, or chosen on some documents and reported on others.

split.py      each task's documents, in two
objective.py  what a choice is made by: a task's main metric, or the mean over tasks
choice.py     the best of several candidates
screen.py     which cells are scored at all
greedy.py     edits composed block by block
course.py     in which order a race takes documents
race.py       cells that cannot be the choice are given up
select.py     the protocol: choose on validation, report on test
"""

from __future__ import annotations

from lrbench.run.model_run import ModelRun
from lrbench.run.recorder import Recorder, Scope
from lrbench.run.selection.select import run_selection


def run_model(recorder: Recorder, model_run: ModelRun) -> None:
    """Scores what the suite asks of one model, as the suite asks for it.

    Raises:
        SuiteError: there are too few documents for what the suite asks.
        KeyboardInterrupt: after the rows of all finished cells are on disk.
    """
    if model_run.suite.select is None:
        recorder.score(model_run, Scope(model_run.plan))
    else:
        run_selection(recorder, model_run, model_run.suite.select)
