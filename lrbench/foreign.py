"""Code that is not lrbench's: what it may raise, and what it must leave as it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Iterator

import torch

#: What foreign code may raise without ending the run: a plugin that calls sys.exit(), or gives a task up, is a failed
#: row as well.
FOREIGN = (Exception, SystemExit, asyncio.CancelledError)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Puts back what plugins must not touch: the global random state, the default dtype, the working directory."""
    dtype = torch.get_default_dtype()
    here = os.getcwd()
    python = random.getstate()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            random.setstate(python)
            os.chdir(here)
