"""How many documents a race spares, and how often it chooses the same cell as scoring all of them.

    python benchmarks/race.py                    # simulated sweeps of several sizes
    python benchmarks/race.py --run RUN          # the cells of a run, document by document
    python benchmarks/race.py --quick            # a few small ones: to see that it works

Nothing is scored here. A race looks at documents in random order; from per-document scores that are there already it
can be held again and again, each time in another order. RUN is a run whose cells were all scored on the same documents:
its validation rows, where the suite chooses (without `race`), else all its rows. The simulated sweeps have 150 cells
that damage 1 to 60 % of the answers and mend a few; a fifth of LASER's CounterFact has some 13,000 documents.
docs/selection.md says what a race promises.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lrbench.analysis.scored_run import ScoredRun
from lrbench.results.directory import open_run
from lrbench.run.selection.document_order import DocumentOrder
from lrbench.stats.betting import PairwiseElimination
from lrbench.stats.metric_names import is_fraction, primary

CELLS, SIZES, ORDERS = 150, (120, 600, 2400, 13000), 20


@dataclass(frozen=True)
class Raced:
    """Races over one method's cells on one task.

    Attributes:
        times_fewer: documents scored in full over those scored in the race, all cells together; the median over orders.
        least, most: the same of the worst and the best order.
        same_choice: share of the orders that chose a cell with the accuracy of the best.
        regret: the largest difference from the best accuracy.
    """

    what: str
    cells: int
    documents: int
    times_fewer: float
    least: float
    most: float
    same_choice: float
    regret: float


def race(values: NDArray[np.float64], margin: float, alpha: float, block: int) -> tuple[int, int]:
    """The cell chosen, and how many document scores it took; of values (documents, cells) in the order given."""
    documents, cells = values.shape
    elimination, scored, start = PairwiseElimination(cells, documents, margin, alpha), 0, 0
    for end in DocumentOrder([[("task", index)] for index in range(documents)], {}, {}).ends(block):
        if len(elimination.remaining) < 2:
            break
        elimination.observe(values[start:end][:, elimination.remaining])
        scored += (end - start) * len(elimination.remaining)
        start = end
        if end < documents:
            elimination.eliminate()
    scored += (documents - start) * len(elimination.remaining)
    return int(max(elimination.remaining, key=lambda cell: values[:, cell].sum())), scored


def races(what: str, values: NDArray[np.float64], options: argparse.Namespace, orders: int) -> Raced:
    """Several, each in another order."""
    documents, cells = values.shape
    accuracy, dice = values.mean(0), np.random.default_rng(0)
    fewer, regrets = [], []
    for _ in range(orders):
        choice, scored = race(dice.permutation(values), options.margin, options.alpha, options.block)
        fewer.append(documents * cells / scored)
        regrets.append(float(accuracy.max() - accuracy[choice]))
    same = statistics.fmean(regret < 1e-12 for regret in regrets)
    return Raced(what, cells, documents, statistics.median(fewer), min(fewer), max(fewer), same, max(regrets))


def simulated(documents: int, cells: int) -> NDArray[np.float64]:
    """Right or wrong by document and cell: most damage little, some a lot, and all mend a few answers."""
    dice = np.random.default_rng(documents)
    right = dice.random(documents) < 0.7
    damage = 0.01 * 60 ** dice.random(cells)
    mended = 0.05 * dice.random(cells)
    spoilt = dice.random((documents, cells)) < damage
    return np.where(right[:, None], ~spoilt, dice.random((documents, cells)) < mended).astype(float)


def of_run(path: Path) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """The per-document accuracies of each method's cells on each task, where all cells have the same documents."""
    run = ScoredRun(open_run(path), path.name, "validation")
    known = {cell: run.scores(row)[0] for cell, row in run.rows.items() if row.status == "ok" and row.reducer}
    for task in sorted({task for row in run.rows.values() for task in row.scores}):
        rows = [row for cell, row in run.rows.items() if cell in known and task in row.scores]
        for label in dict.fromkeys(row.label for row in rows):
            of_label = [row for row in rows if row.label == label]
            metric = primary(of_label[0].scores[task])
            if not is_fraction(metric):
                continue
            columns = []
            for row in of_label:
                values = [known[row.cell][leaf, metric].values for leaf in run.leaves(task)]
                columns.append(np.concatenate([part for part in values if part is not None]))
            if len(columns) > 1 and len({len(column) for column in columns}) == 1:
                yield f"{label} on {task}", np.stack(columns, axis=1)


def main() -> None:
    """Races, prints, and writes what was found where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run directory, instead of simulated sweeps")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--margin", type=float, default=0.01)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="few cells, documents and orders")
    parser.add_argument("--output", type=Path, help="write the figures as JSON, too")
    options = parser.parse_args()
    orders = 3 if options.quick else ORDERS
    if options.run is not None:
        sweeps = list(of_run(options.run))
    else:
        cells, sizes = (20, SIZES[:2]) if options.quick else (CELLS, SIZES)
        sweeps = [("simulated", simulated(size, cells)) for size in sizes]
    found = [races(what, values, options, orders) for what, values in sweeps]
    table = Table(title=f"Racing, α = {options.alpha:g}, margin {options.margin:g}; {orders} random orders")
    for heading in ("sweep", "cells", "documents", "times fewer", "(range)", "same choice", "largest regret"):
        table.add_column(heading, justify="left" if heading == "sweep" else "right")
    for one in found:
        table.add_row(
            one.what, str(one.cells), f"{one.documents:,}", f"{one.times_fewer:.1f}",
            f"{one.least:.1f}–{one.most:.1f}", f"{one.same_choice:.0%}", f"{one.regret:.4f}",
        )  # fmt: skip
    Console(width=140, highlight=False).print(table)
    if options.output is not None:
        settings = {"alpha": options.alpha, "margin": options.margin, "block": options.block, "orders": orders}
        options.output.write_text(json.dumps({**settings, "sweeps": [asdict(one) for one in found]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
