"""Contains lm-eval's side effects on the process (seeds, log lines, progress bars), and compiles its templates once."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest import mock

import lm_eval.utils
import numpy as np
import torch
from tqdm.std import tqdm

from lrbench.system.isolation import random_state_kept

CHATTY = ("lm_eval", "transformers", "datasets", "huggingface_hub", "accelerate", "evaluate")

#: lm-eval alone compiles a template again for every document: most of the time of building requests and scores
_compiled = lru_cache(maxsize=4096)(lm_eval.utils.env.from_string)

#: the default seeds of lm-eval's `simple_evaluate`, needed to reproduce its scores
PYTHON_SEED, OTHER_SEED = 0, 1234


@contextmanager
def contained() -> Iterator[None]:
    """Runs lm-eval's code with lm-eval's seeds, without log lines and progress bars; restores all afterwards.

    Entered anew for each cell, so that generation by sampling does not depend on earlier cells.
    """
    with random_state_kept(), _silence(), _no_bars(), mock.patch.object(lm_eval.utils.env, "from_string", _compiled):
        random.seed(PYTHON_SEED)
        np.random.seed(OTHER_SEED)
        torch.manual_seed(OTHER_SEED)
        yield


@contextmanager
def _silence() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Disables tqdm: some of lm-eval's bars have no switch, and tqdm reads its environment variable only at import."""
    original = tqdm.__init__

    def disabled(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, "disable": True})

    tqdm.__init__ = disabled
    try:
        yield
    finally:
        tqdm.__init__ = original
