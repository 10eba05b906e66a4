"""Workers without a cluster, reducers that end their process, and what rows say."""

from lrbench.results.directory import RunDirectory
from lrbench.run.executors.remote import open_remote, order_of, unit_of
from lrbench.run.executors.wire import pack, partials_from, scored_from, step_from, unpack
from lrbench.run.executors.worker import Worker
from lrbench.run.recorder import Interrupted

KILLS = """
import os

import lrbench


class Kills(lrbench.Reducer):
    name = "kills"

    def reduce(self, weight, rank, context):
        if context.slot.layer == 4:
            os.kill(os.getpid(), 9)
        return lrbench.LowRank(weight[:, :rank].clone(), weight[:rank].clone())


@lrbench.hookimpl
def lrbench_reducers():
    return [Kills]
"""

UNSEEN = """
import gc

import transformers
import lrbench


class Unseen(lrbench.Reducer):
    name = "unseen"

    def reduce(self, weight, rank, context):
        if context.slot.layer == 4:
            gc.collect()
            for one in gc.get_objects():
                if type(one) is transformers.LlamaForCausalLM and not one.lm_head.weight.is_meta:
                    one.model.norm.weight.data.mul_(1.01)
        return lrbench.LowRank(weight[:, :rank].clone(), weight[:rank].clone())


@lrbench.hookimpl
def lrbench_reducers():
    return [Unseen]
"""


def facts(directory: RunDirectory):
    """All that rows and samples say, apart from times and environments."""
    aside = {"allocate_seconds", "calibrate_seconds", "decompose_seconds", "evaluate_seconds", "environment"}
    return {key: (row.model_dump(exclude=aside), directory.samples(key)) for key, row in directory.rows().items()}


def machines(directory: RunDirectory):
    """The environments, but for the state of the checkout: git takes long on a busy machine, and then says nothing."""
    return [
        {key: value for key, value in entry.items() if key not in ("git", "hash")}
        for entry in directory.environments().values()
    ]


class InProcess:
    """An executor with one worker, in this process: all that goes between them is text, as on a cluster.

    Args:
        share: cells that it is given at a time.
        altered: changes what the worker is told to open.
    """

    here = stopped = False

    def __init__(self, share=4, altered=lambda order: order):
        self.share, self.altered = share, altered
        self.worker = Worker(1)
        self.kinds = []

    def open(self, setup):
        order = order_of(setup, gpus=0.0)
        self.opened = unpack(self.worker.open(pack(self.altered(order))))
        if "error" in self.opened:
            raise AssertionError(self.opened["error"])
        self.run = open_remote(setup, order, self.opened, self)
        return self.run

    def spoilt(self):
        return [] if self.worker.intact() else ["the only one"]

    def compute(self, run, plan, keys, engine):
        here = self.opened["environment"]
        run.answers.in_environment(here)
        for start in range(0, len(plan.cells), self.share):
            unit = unit_of(run, plan.cells[start : start + self.share], keys, engine, here)
            messages = self.worker.work(pack(unit))
            try:
                yield from self.heard(run, engine, here, messages)
            finally:
                self.worker.stop()  # its thread ends before the test goes on
                for _ in messages:
                    pass
                self.worker._stopping.clear()
            if self.stopped:
                raise Interrupted

    def heard(self, run, engine, here, messages):
        for message in map(unpack, messages):
            self.kinds.append(message["kind"])
            if message["kind"] == "row":
                scored = scored_from(message)
                yield scored
            elif message["kind"] == "partial":
                [partial] = partials_from([message["partial"]])
                run.answers.in_environment(here).add(message["cell"], partial)
            elif message["kind"] == "step":
                run.report(step_from(message["step"]))
            elif message["kind"] == "end":
                if "error" in message or "bug" in message:
                    raise AssertionError(message)
                engine.described = message.get("engine") or engine.described

    def stop(self):
        self.stopped = True
        self.worker.stop()

    def close(self):
        pass
