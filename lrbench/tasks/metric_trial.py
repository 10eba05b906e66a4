"""Scores one document of a task by an invented answer, so that code which its metrics load late is loaded now."""

from __future__ import annotations

from lm_eval.api.task import Task

from lrbench.tasks.containment import OTHER_SEED, contained
from lrbench.tasks.frozen_requests import FrozenRequests, FrozenTask
from lrbench.tasks.score import Answers, score
from lrbench.tasks.token_windows import TokenPerplexity


def try_metrics(name: str, task: Task) -> None:
    """Builds the requests of a task's first document, and computes all metrics of invented answers.

    Raises:
        Exception: whatever the task's code raises; it may only mean that the answer is not one that the code expects.
    """
    if isinstance(task, TokenPerplexity):  # its metric is in lrbench
        return
    with contained():
        task.set_fewshot_seed(seed=OTHER_SEED)
        task.build_all_requests(limit=1, rank=0, world_size=1)
        requests, answers = FrozenRequests({}, {}, OTHER_SEED), Answers()
        requests.tasks[name] = FrozenTask(name, task, 1, list(task.instances))
        for instance in [each for each in task.instances for _ in range(each.repeats or 1)]:
            match instance.request_type:
                case "loglikelihood":
                    requests.pair_requests.append(instance)
                    answers.pairs.append((-1.0, False))
                case "loglikelihood_rolling":
                    requests.rolling_requests.append(instance)
                    answers.rolling.append(-1.0)
                case _:
                    requests.prompts.append(instance)
                    answers.texts.append("1")
        score(requests, answers)


def lacks_code(error: BaseException) -> bool:
    """Whether an error means that code, or data which code needs, could not be loaded."""
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        step = step.__cause__ or step.__context__
    return any(isinstance(step, OSError | ImportError) or type(step) is LookupError for step in chain)  # nltk's
