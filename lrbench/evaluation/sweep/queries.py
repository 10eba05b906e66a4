"""Log-likelihood requests as token arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lrbench.errors import EvaluationError
from lrbench.tasks.tokenization import TokenPair


@dataclass(frozen=True, eq=False)
class Query:
    """One log-likelihood request.

    Attributes:
        tokens: (n,), the model's input.
        targets: (k,), k <= n: the tokens whose probability is scored at the last k positions.
    """

    tokens: np.ndarray
    targets: np.ndarray

    @property
    def key(self) -> bytes:
        """A sort key in the order of the tokens; a prefix sorts before its extensions."""
        return self.tokens.astype(">u4").tobytes()

    def last(self, count: int) -> Query:
        """The same tokens with only the last `count` targets."""
        return Query(self.tokens, self.targets[-count:])

    def shortened(self, count: int) -> Query:
        """The last `count` tokens."""
        return self.between(max(0, len(self.tokens) - count), len(self.tokens))

    def between(self, start: int, end: int) -> Query:
        """The tokens from `start` to before `end`, with their targets; the last token always has one."""
        end = min(end, len(self.tokens))
        unscored = len(self.tokens) - len(self.targets)
        following = np.concatenate([self.tokens[1 : unscored + 1], self.targets])
        first_scored = max(start, min(unscored, end - 1))
        return Query(self.tokens[start:end], following[first_scored:end])


def make_queries(pairs: Iterable[TokenPair], longest: int) -> list[Query]:
    """Makes queries from contexts and continuations, truncated on the left as lm-eval does.

    Args:
        longest: the model's maximum input length, in tokens.

    Raises:
        EvaluationError: an empty context or continuation, or a continuation longer than `longest`; lm-eval refuses
            them too.
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
