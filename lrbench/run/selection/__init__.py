"""Scores a model's cells: all of them, or those chosen on validation documents and reported on test documents.

split.py           splits each task's documents into validation and test
objective.py       the value that a choice maximises: a task's main metric, or the mean over tasks
choice.py          chooses the best of several candidates
screen.py          skips cells by a prediction from gradients
greedy.py          composes edits block by block
document_order.py  the order in which a race draws documents
race.py            stops cells that cannot be chosen
select.py          the whole protocol: chooses on validation documents, reports on test documents
"""

from __future__ import annotations

from lrbench.run.model_run import ModelRun
from lrbench.run.recorder import Recorder, Scope
from lrbench.run.selection.select import run_selection


def run_model(recorder: Recorder, model_run: ModelRun) -> None:
    """Scores the cells of one model as the suite specifies.

    Raises:
        SuiteError: there are too few documents for the selection.
        KeyboardInterrupt: after the rows of all finished cells are on disk.
    """
    if model_run.suite.select is None:
        recorder.score(model_run, Scope(model_run.plan))
    else:
        run_selection(recorder, model_run, model_run.suite.select)
