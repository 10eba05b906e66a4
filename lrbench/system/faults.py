"""Named points at which a test may interrupt a durable write. They do nothing in a run.

A point is a call such as `point("append.written", path)`, and an entry of `POINTS`. A run that is killed at a point and
started again must end with the rows of an uninterrupted run; a test tries all points on all files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

#: Set by a test; called with each point's name and the file.
hook: Callable[[str, Path], None] | None = None

#: Each point, and the state of the file there.
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
