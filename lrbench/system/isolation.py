"""Restores process state that foreign code (plugins, tasks, lm-eval) may change."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restores the global random states of Python, numpy and torch."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Restores the global random states, the default dtype and the working directory."""
    dtype, here = torch.get_default_dtype(), os.getcwd()
    with random_state_kept():
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            os.chdir(here)
