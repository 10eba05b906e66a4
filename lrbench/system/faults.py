"""Named points of a run at which a test may make it fail. A run itself passes them by.

A point is a call `point("rows.appended")` at the place it names, and an entry of `POINTS`, which says what has been
done by then. What is interrupted there and started again must end with the rows of a run that never stopped: a test
walks through all points, so a new one needs nothing but its two lines.
"""

from __future__ import annotations

from collections.abc import Callable

#: Called with each point's name where a test has put something here.
hook: Callable[[str], None] | None = None

POINTS = {
    "plan.begun": "nothing: the suite is known",
    "plan.structure": "a model's structure was read without its weights",
    "plan.made": "a model's cells were planned, and its base held to them",
    "directory.made": "the run's directory is there",
    "directory.locked": "no other process writes to it",
    "directory.checked": "it holds no other suite's run",
    "directory.read": "its manifest and rows were read",
    "model.loaded": "a model's weights are in memory",
    "model.planned": "its cells were planned on the loaded model",
    "model.base": "the base of its updates is in memory, where it has one",
    "tasks.loaded": "the tasks were read",
    "requests.frozen": "requests were built and tokenised",
    "calibration.drawn": "the calibration text was read, and its windows drawn",
    "model.opened": "all that cells have in common is there",
    "calibration.begun": "statistics are to be collected",
    "calibration.collected": "a statistic was collected, and is not in the cache",
    "calibration.kept": "a statistic is in the cache",
    "cache.written": "a file of the cache has its bytes under another name",
    "cells.known": "the cells without a row are known",
    "cells.begun": "the environment is on file",
    "cells.scored": "every cell of a plan has its row",
    "cells.verified": "the model was found to be what was loaded",
    "group.begun": "cells that differ in the rank alone are to be reduced",
    "weight.copied": "a weight's copy for reducers is there",
    "weight.optimum": "its best possible errors are known",
    "weight.warm": "a reducer was tried on its corner",
    "weight.prepared": "a reducer has prepared it",
    "weight.factored": "it has factors of one rank",
    "weight.measured": "their error and size are known",
    "cell.reduced": "all of a cell's weights are reduced",
    "edit.placed": "some of a cell's matrices are in the model",
    "edit.standing": "all of a cell's reductions are in the model",
    "edit.removing": "the cell was scored, and the original weights are to come back",
    "edit.removed": "the original weights are back",
    "layers.standing": "layers of factors stand in the model",
    "layers.removing": "the original layers are to come back",
    "scoring.checked": "the engine has checked itself on this model",
    "scoring.begun": "a cell's earlier answers were read",
    "scoring.advanced": "the states that enter a cell's first block are there",
    "frontier.moving": "some of the states that enter a block are there",
    "scoring.batch": "some of a cell's requests are answered",
    "scoring.answered": "a cell was answered one part of the requests, and nothing of it is on disk",
    "scoring.chunk": "that part is on disk, where there are several",
    "scoring.texts": "a cell's texts are written",
    "scoring.metrics": "a cell's scores are known",
    "inference.measured": "its speed is known",
    "row.made": "a cell's row is complete, in memory",
    "row.samples": "its per-document scores are on disk",
    "row.appended": "the row is on disk",
    "row.counted": "the row was counted and told of",
    "screen.predicted": "what cells would change is predicted, and not on disk",
    "screen.kept": "the predictions are on disk",
    "block.kept": "in a race, a cell's row on some documents is on disk",
    "race.judged": "a block of documents was taken in, and cells may have been given up",
    "race.over": "every cell that races is out of the race",
    "greedy.tried": "all edits that a block offers are scored on top of what was accepted",
    "greedy.decided": "one of them was accepted, or none",
    "choice.made": "the cells to be reported are chosen",
    "partial.dropping": "the parts of finished cells are to go",
    "run.done": "every cell of every model has its row",
    **{f"{file}.opened": f"{file}: a file beside it was made, empty" for file in ("manifest", "samples")},
    **{f"{file}.written": f"{file}: it was written there, perhaps not to the disk" for file in ("manifest", "samples")},
    **{f"{file}.synced": f"{file}: it is on the disk, under the other name" for file in ("manifest", "samples")},
    **{f"{file}.renamed": f"{file}: it has its name, perhaps not on the disk" for file in ("manifest", "samples")},
    **{f"{file}.opened": f"{file}: the file is open" for file in ("rows", "environments", "partial")},
    **{f"{file}.appended": f"{file}: the line is written, not on disk" for file in ("rows", "environments", "partial")},
    **{f"{file}.synced": f"{file}: the line is on the disk" for file in ("rows", "environments", "partial")},
}


def point(name: str) -> None:
    """Where a test may step in."""
    if hook is not None:
        hook(name)
