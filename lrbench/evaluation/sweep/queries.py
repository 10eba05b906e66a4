"""What is asked of the model: tokens, and the tokens that are to be predicted at their end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lrbench.errors import EvaluationError
from lrbench.tasks.frozen_requests import Pair


@dataclass(frozen=True, eq=False)
class Query:
    """One log-likelihood request, as the model sees it.

    Attributes:
        tokens: (n,), what the model reads.
        targets: (k,), k <= n: what its last k positions are asked to predict.
    """

    tokens: np.ndarray
    targets: np.ndarray

    @property
    def key(self) -> bytes:
        """Sorts as the tokens do, a prefix before what it begins."""
        return self.tokens.astype(">u4").tobytes()

    def last(self, count: int) -> Query:
        """The same tokens, of which only the last `count` predictions are asked for."""
        return Query(self.tokens, self.targets[-count:])


def make_queries(pairs: Iterable[Pair], longest: int) -> list[Query]:
    """Queries from contexts and continuations, cut from the left as lm-eval does it.

    Args:
        longest: tokens that the model may read at once.

    Raises:
        EvaluationError: an empty context or continuation, or a continuation longer than the model may read; lm-eval
            refuses them too.
    """
    made = []
    for _, context, continuation in pairs:
        if not context or not continuation:
            raise EvaluationError("a request without a context or without a continuation cannot be scored")
        if len(continuation) > longest:
            raise EvaluationError(f"a continuation of {len(continuation)} tokens does not fit the model's {longest}")
        tokens = (context + continuation)[-(longest + 1) :][:-1]
        made.append(Query(np.array(tokens, dtype=np.int64), np.array(continuation, dtype=np.int64)))
    return made
