"""Named points of a durable write at which a test may interrupt it. A run itself passes them by.

A point is a call `point("append.written", path)` at the place it names, and an entry of `POINTS`. A run that is killed
there and started again must end with the rows of a run that never stopped; a test tries all points on all files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

#: Set by a test; called with each point's name and the file.
hook: Callable[[str, Path], None] | None = None

#: The points, and what has been done by then.
POINTS = {
    "write.opened": "an empty temporary file was made",
    "write.written": "the temporary file was written, perhaps not to the disk",
    "write.synced": "the temporary file is on the disk",
    "write.renamed": "the file has its name, perhaps not on the disk",
    "append.opened": "the file is open",
    "append.written": "the line was written, perhaps not to the disk",
    "append.synced": "the line is on the disk",
}


def point(name: str, path: Path) -> None:
    """Where a test may interrupt the write of `path`."""
    if hook is not None:
        hook(name, path)
