"""Second moments and mean absolute values of vectors (a weight's inputs or output gradients), summed over tokens."""

from __future__ import annotations

from collections.abc import Collection

import torch

from lrbench.linalg import full_precision

KINDS = ("second_moment", "absmean")
_CHUNK = 4096  # tokens in a product


def bytes_of(kind: str, features: int) -> int:
    """Bytes of the sum of one kind and of the product that is added to it."""
    return 16 * features**2 if kind == "second_moment" else 8 * features


class Moments:
    """Sums of x xᵀ and of |x| over tokens, in float64.

    Products are computed in float32 (TF32 off; in float64 for float64 vectors), for at most 4,096 tokens at a time.
    """

    def __init__(self, features: int, kinds: Collection[str], device: torch.device) -> None:
        self.tokens = 0
        self._second = self._abs = None
        if "second_moment" in kinds:
            self._second = torch.zeros(features, features, dtype=torch.float64, device=device)
        if "absmean" in kinds:
            self._abs = torch.zeros(features, dtype=torch.float64, device=device)

    def add(self, x: torch.Tensor) -> None:
        """Adds tokens (..., features)."""
        x = x.detach().reshape(-1, x.shape[-1])
        self.tokens += len(x)
        if self._second is not None:
            for part in x.to(torch.promote_types(x.dtype, torch.float32)).split(_CHUNK):
                with full_precision():
                    self._second += part.T @ part
        if self._abs is not None:
            self._abs += x.abs().sum(0, dtype=torch.float64)

    def mean(self, kind: str) -> torch.Tensor:
        """E[x xᵀ] (features, features) or E|x| (features,), float32, on the CPU."""
        total = self._second if kind == "second_moment" else self._abs
        assert total is not None
        return (total / self.tokens).float().cpu()
