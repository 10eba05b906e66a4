"""The most memory that one method takes beyond its matrix, in a process of its own.

Prints bytes, or nothing where the system does not tell (it is Linux that does).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np


def peak_bytes(file: Path, name: str, threads: int) -> int | None:
    """Bytes beyond the (m, n) matrix in `file`, by the contestant `name`."""
    command = [sys.executable, __file__, str(file), name, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout) if done.stdout.strip() else None


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    assert found, field
    return int(found[1]) * 1024


def _main(file: str, name: str, threads: str) -> None:
    import torch

    from decompose_methods import RANKS, contestants

    torch.set_num_threads(int(threads))
    W = torch.from_numpy(np.load(file))
    ranks = [max(1, int(share * min(W.shape))) for share in RANKS]
    [method] = [one for one in contestants("cpu") if one.name == name]
    for _ in method.run(W[:64, :64].contiguous(), [1, 8]):  # what libraries keep for themselves is no method's
        pass
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM is the peak from now on
        before = _status("VmRSS")
    except OSError:
        return
    for _ in method.run(W, ranks):  # one rank's factors at a time
        pass
    print(_status("VmHWM") - before)


if __name__ == "__main__":
    _main(*sys.argv[1:])
