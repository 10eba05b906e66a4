"""Scores cells on requests that were built and tokenised once."""

from __future__ import annotations

from collections.abc import Iterator

from lrbench.evaluate.bound import BoundEngine
from lrbench.evaluate.engine import Job
from lrbench.tasks.score import Answers, Samples, Scores, score


class FrozenEngine(BoundEngine):
    """lm-eval's forward passes and metrics, without its building and tokenising for every cell.

    Batches are lm-eval's own, so the numbers are too, to the last bit.
    """

    name = "frozen"

    def measure(self, job: Job) -> tuple[Scores, Samples]:
        """Answers every request and scores the answers. Raises EvaluationError where an answer is not finite."""
        return score(self.requests, Answers(self._pairs(), list(self._rolling()), self._texts()))

    def _pairs(self) -> list[tuple[float, bool]]:
        if not self.requests.pairs:
            return []
        return self.lm._loglikelihood_tokens(self.requests.pairs, disable_tqdm=True)

    def _rolling(self) -> Iterator[float]:
        """Sums of windows, which lm-eval takes in batches as they come, not sorted."""
        windows, size = self.requests.windows, self.lm.batch_size
        answers: list[tuple[float, bool]] = []
        for start in range(0, len(windows), size):
            answers += self.lm._loglikelihood_tokens(windows[start : start + size], disable_tqdm=True)
        start = 0
        for count in self.requests.window_counts:
            yield sum(loglikelihood for loglikelihood, _ in answers[start : start + count])
            start += count

    def _texts(self) -> list[str]:
        self.check_generation()
        return self.lm.generate_until(self.requests.prompts, disable_tqdm=True) if self.requests.prompts else []
