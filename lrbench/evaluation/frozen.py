"""Scores cells on requests that are built and tokenised once."""

from __future__ import annotations

from collections.abc import Iterator

from lrbench.evaluation.base_engine import BaseEngine
from lrbench.evaluation.interface import Job
from lrbench.tasks.score import Answers, Samples, TaskScores, score


class FrozenEngine(BaseEngine):
    """Uses lm-eval's forward passes and metrics, but builds and tokenises the requests only once.

    The batches are lm-eval's own, so the scores equal lm-eval's to the last bit.
    """

    name = "frozen"

    def measure(self, job: Job) -> tuple[TaskScores, Samples]:
        """Answers every request and scores the answers. Raises EvaluationError if an answer is not finite."""
        return score(self.requests, Answers(self._pairs(), list(self._rolling()), self._texts()))

    def _pairs(self) -> list[tuple[float, bool]]:
        if not self.requests.pairs:
            return []
        return self.lm._loglikelihood_tokens(self.requests.pairs, disable_tqdm=True)

    def _rolling(self) -> Iterator[float]:
        """The log-likelihood of each text, summed over its windows.

        As lm-eval does, batches windows in their order, unsorted, one request type at a time.
        """
        requests, counts, size = self.requests.rolling_requests, self.requests.window_counts, self.lm.batch_size
        kinds = [i.request_type for i, count in zip(requests, counts, strict=True) for _ in range(count)]  # per window
        answers = [0.0] * len(kinds)
        for kind in dict.fromkeys(kinds):
            places = [place for place, other in enumerate(kinds) if other == kind]
            for start in range(0, len(places), size):
                batch = places[start : start + size]
                windows = [self.requests.windows[place] for place in batch]
                answered = self.lm._loglikelihood_tokens(windows, disable_tqdm=True)
                for place, (loglikelihood, _) in zip(batch, answered, strict=True):
                    answers[place] = loglikelihood
        start = 0
        for count in counts:
            yield sum(answers[start : start + count])
            start += count

    def _texts(self) -> list[str]:
        self.check_generation()
        return self.lm.generate_until(self.requests.prompts, disable_tqdm=True) if self.requests.prompts else []
