"""Attention masks for rows of prefix trees.

Masks are additive, because eager attention silently computes wrong results with boolean ones.
"""

from __future__ import annotations

from typing import Any

import torch

from lrbench.evaluation.sweep.batches import Batch

FULL, SLIDING = "full_attention", "sliding_attention"


class Masks:
    """Makes the masks for one model: a single mask, or a mask per layer type if its configuration names several.

    The mask includes any sliding window, because the model applies its own window only to masks that it makes.
    """

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        config = config.get_text_config()
        self._dtype = dtype
        self._window: int | None = getattr(config, "sliding_window", None)
        self._types = set(getattr(config, "layer_types", None) or ())

    def of(self, batch: Batch) -> torch.Tensor | dict[str, torch.Tensor]:
        """(rows, 1, length, length): 0 where a position attends to itself or an ancestor, else the dtype's minimum."""
        assert batch.depths is not None
        assert batch.ends is not None
        place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        sees = (place[:, None] >= place) & (place[:, None] < batch.ends[:, None, :])
        if SLIDING in self._types:
            return {FULL: self._additive(sees), SLIDING: self._additive(sees & self._near(batch.depths))}
        if self._window is not None and not self._types:
            sees &= self._near(batch.depths)
        return self._additive(sees)

    def _near(self, depths: torch.Tensor) -> torch.Tensor:
        assert self._window is not None
        return depths[:, :, None] - depths[:, None, :] < self._window

    def _additive(self, sees: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(sees.shape, dtype=self._dtype, device=sees.device)
        return mask.masked_fill_(~sees, torch.finfo(self._dtype).min)[:, None]
