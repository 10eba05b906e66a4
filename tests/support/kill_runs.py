"""Kills runs at random moments (SIGKILL), starts them again, and holds what they end with to a run that never stopped.

    python -m tests.support.kill_runs --kills 50

Each attempt is a process of its own, forked from one that has imported everything already, so that the moments fall on
the run and not on the imports. The exit code is 1 where a row is lost, stands twice, or differs in anything but times.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from lrbench.evaluation.sweep import sizes as memory
from lrbench.results.directory import RunDirectory
from tests.support.faulty import PARTS, PLAIN, Subject, facts, scored_lines, write_parts

SWEEP = "{mode: each, layers: [0, 1], weights: [mlp.down, attn.o], rank: {keep: [0.6, 0.3]}}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; another one each time by default")
    args = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    memory.TOKENS["cpu"] = 32
    dice, done, runs = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as name:
        subjects = []
        for kind, text in (("whole requests", PLAIN), ("requests in parts", PARTS)):
            folder = Path(name) / kind
            folder.mkdir()
            write_parts(folder)
            old = next(line for line in text.splitlines() if "mode: each" in line)
            subject = Subject(folder, text.replace(old, f"  - {SWEEP}").replace("[svd]", "[svd, rsvd]"))
            subject.run(folder / "warm-up")
            started = time.perf_counter()
            whole = facts(subject.run(folder / "never stopped").directory)
            subjects.append((kind, subject, whole, time.perf_counter() - started))
        while done < args.kills:
            kind, subject, whole, seconds = subjects[runs % len(subjects)]
            out = subject.folder / f"run {runs}"
            runs += 1
            ended = False
            while not ended:
                # As often as there are kills left to give; the last attempt is let be.
                after = dice.uniform(0, 1.1 * seconds) if done < args.kills else None
                ended = attempt(subject, out, after)
                if not ended:
                    done += 1
                    print(f"kill {done}, {kind}: after {after:.2f} s of {seconds:.2f}, {rows_in(out)} rows", flush=True)
            if problem := wrong(RunDirectory(out), whole):
                print(f"{kind}, {out.name}: {problem}")
                return 1
    print(f"{done} kills in {runs} runs: every row there, once, and equal")
    return 0


def attempt(subject: Subject, out: Path, after: float | None) -> bool:
    """Runs in another process, killed after so many seconds. Whether it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if subject.run(out).failed == 0 else 3)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(2)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise SystemExit(f"a run ended with {os.WEXITSTATUS(status)}")
    return True


def rows_in(out: Path) -> int:
    return len(RunDirectory(out).rows())


def wrong(directory: RunDirectory, whole: dict) -> str:
    """What is not as it is in a run that never stopped; empty where nothing is."""
    found, lines = facts(directory), scored_lines(directory)
    if lost := whole.keys() - found.keys():
        return f"{len(lost)} rows are lost"
    if twice := [cell for cell, count in lines.items() if count > 1]:
        return f"{len(twice)} rows stand twice"
    if other := [cell for cell in found if found[cell] != whole.get(cell)]:
        return f"{len(other)} rows differ"
    return ""


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
