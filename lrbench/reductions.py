"""From cells to checked, measured factors: each weight's work is shared between the ranks and methods that need it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import psutil
import torch

from lrbench.errors import LrbenchError
from lrbench.factors import LowRank
from lrbench.faults import point
from lrbench.linalg import WeightedSpectrum, optimal_errors, output_error, root
from lrbench.models.slots import WeightSlot
from lrbench.plan import Cell, Method
from lrbench.ranks import RankRequest, closed_rank, find_rank, ranks_to_prepare
from lrbench.reduction import Reduction, beside
from lrbench.shared import Shared
from lrbench.store import Edit
from lrbench.work import (
    FOREIGN,
    Bases,
    Copy,
    Statistics,
    Work,
    failing_as,
    random_state_kept,
    reduced_matrix,
    synchronize,
)

_KEPT = 1 / 8  # of the free memory, for copies of weights and what is shared between methods


class Reductions:
    """Reduces slots for a run. Keeps each slot's optimal errors, and which reducers have been warmed up.

    Copies of weights, and what reducers share, are kept of the slots used last, up to an eighth of the free memory:
    methods follow one another on a slot, or on the same few slots.

    With a base, W − W_base stands for each weight W: reducers are given that, and errors are of that.
    """

    def __init__(self, seed: int, calibration: Statistics | None = None, base: Bases | None = None) -> None:
        self._seed = seed
        self._calibration = calibration
        self._base = base
        self._optima: dict[str, list[float]] = {}
        self._output_optima: dict[str, list[float]] = {}
        self._warm: set[tuple[str, torch.device]] = set()
        self._copies: OrderedDict[str, Copy] = OrderedDict()

    def of_group(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[Reduction] | LrbenchError]]:
        """Reduces cells that differ in the rank alone (one seed, too), sharing each slot's preparation between them.

        Every rank's factors are held until all slots are done; where they would take more than a quarter of the free
        memory, the ranks are done one after the other, and the preparation is repeated.
        """
        slots, method = cells[0].slots, cells[0].method
        assert method is not None
        if cells[0].drops_updates:
            yield from ((cell, [self._without_update(slot) for slot in cell.slots]) for cell in cells)
            return
        size = sum(slot.numbers * slot.tensor().element_size() for slot in slots)
        at_once = len(cells) if size * len(cells) <= _free_memory(slots[0].tensor().device) / 4 else 1
        for start in range(0, len(cells), at_once):
            part = cells[start : start + at_once]
            done: list[list[Reduction] | LrbenchError] = [[] for _ in part]
            for slot in slots:
                alive = [i for i, result in enumerate(done) if isinstance(result, list)]
                requests = [part[i].request_of(slot) for i in alive]
                outcomes = self._slot(slot, method, requests, cells[0].seed)
                for i, outcome in zip(alive, outcomes, strict=True):
                    if isinstance(outcome, Reduction):
                        done[i].append(outcome)  # type: ignore[union-attr]
                    else:
                        done[i] = outcome
            yield from zip(part, done, strict=True)

    def _slot(
        self, slot: WeightSlot, method: Method, requests: Sequence[RankRequest], seed: int | None = None
    ) -> list[Reduction | LrbenchError]:
        """One slot at each requested rank; a failure that concerns them all is given to each."""
        if not requests:
            return []
        reducer = method.reducer
        try:
            with failing_as(slot, method):
                own = self._seed if seed is None else seed
                work = Work(slot, method, own, self._copy(slot), self._calibration, self._base)
                optimum = self._optimum(slot, work)
                spectrum = _singular_values(optimum)
                point("weight.optimum")
                self._warm_up(work)
                point("weight.warm")
                ranks = ranks_to_prepare(requests, reducer, slot.about, spectrum)
                shared = work.prepare(ranks) if reducer.one_preparation else None
                point("weight.prepared")
        except LrbenchError as error:
            self._copies.pop(slot.name, None)
            return [error] * len(requests)
        done: list[Reduction | LrbenchError] = []
        for request in requests:
            try:
                with failing_as(slot, method):
                    rank = closed_rank(request, reducer, slot.about, spectrum)
                    if rank is None:  # factors must be built to know it; that search is in no one's time
                        searched = shared or work.prepare(ranks)
                        rank = find_rank(request, reducer, slot.about, spectrum, work.weight, searched.prepared)
                    preparation = shared or work.prepare([rank])
                    factors, seconds, chosen = work.at_rank(preparation, rank)
                    point("weight.factored")
                    work.check_honesty(factors, request, optimum)
                    measured = work.measured(factors, optimum, seconds, chosen)
                    measured = self._with_output_error(slot, work, measured)
                    point("weight.measured")
                    done.append(measured)
            except LrbenchError as error:
                # A method that wrote to what others share must not fail them.
                self._copies.pop(slot.name, None)
                done.append(error)
        self._forget_old(slot)
        return done

    def _copy(self, slot: WeightSlot) -> Copy:
        """The slot's, as the method before left it."""
        if slot.name not in self._copies:
            base = None if self._base is None else beside(self._base.slot(slot), slot.read())
            self._copies[slot.name] = Copy(reduced_matrix(slot, base), Shared(), base)
        self._copies.move_to_end(slot.name)
        point("weight.copied")
        return self._copies[slot.name]

    def _without_update(self, slot: WeightSlot) -> Reduction:
        """The base's own weight, as an update of rank 0."""
        assert self._base is not None
        weight, (rows, columns) = slot.read(), slot.about.shape
        nothing = LowRank(weight.new_zeros(rows, 0), weight.new_zeros(0, columns))
        edit = Edit(
            weight=slot.name, layer=slot.about.layer, role=slot.about.role, shape=slot.about.shape, rank=0,
            stored_numbers=0, stored_bytes=0, stored_as="factors", relative_error=1.0, optimal_error=1.0,
        )  # fmt: skip
        return Reduction(nothing, edit, 0.0, base=self._base.slot(slot))

    def _forget_old(self, slot: WeightSlot) -> None:
        """Keeps the copies used last, as many as fit."""
        sizes = {name: copy.nbytes for name, copy in self._copies.items()}
        held = sum(sizes.values())
        budget = (_free_memory(slot.tensor().device) + held) * _KEPT
        for name, size in sizes.items():
            if held <= budget:
                break
            del self._copies[name]
            held -= size

    def _optimum(self, slot: WeightSlot, work: Work) -> list[float]:
        """The Eckart-Young error at every rank, once a slot and run; it judges reducers and is in no one's time."""
        if slot.name not in self._optima:
            if ("", work.weight.device) not in self._warm:  # its parts may be in the next reducer's time
                self._warm.add(("", work.weight.device))
                optimal_errors(work.weight[:64, :64].contiguous())
            self._optima[slot.name] = optimal_errors(work.weight, once=work.shared.once)
        return self._optima[slot.name]

    def _with_output_error(self, slot: WeightSlot, work: Work, reduction: Reduction) -> Reduction:
        """Adds what the layer's output loses, where the method was given the inputs' second moment."""
        if self._calibration is None or "second_moment" not in work.statistics:
            return reduction
        H = self._calibration.second_moment(slot)
        if slot.name not in self._output_optima:
            errors = WeightedSpectrum(work.weight, root(H)).weighted_errors()
            self._output_optima[slot.name] = [error / errors[0] if errors[0] else 0.0 for error in errors]
        optima = self._output_optima[slot.name]
        stored = work.rounded(reduction)
        edit = reduction.edit.model_copy(
            update={
                "output_error": output_error(work.weight, stored, H),
                "optimal_output_error": optima[min(reduction.edit.rank, len(optima) - 1)],
            }
        )
        return dataclasses.replace(reduction, edit=edit)

    def _warm_up(self, work: Work) -> None:
        """Runs a reducer once on a corner of its first weight, untimed: libraries initialise when first used."""
        key = (work.method.label, work.weight.device)
        if key in self._warm:
            return
        self._warm.add(key)
        corner = work.weight[:64, :64].contiguous()
        # A method may refuse so small a matrix. On the real one its errors count.
        with contextlib.suppress(*FOREIGN), random_state_kept():
            reducer = work.method.reducer
            reducer.prepare(corner, [1], work.context(corner.shape[1])).at_rank(1).dense()
        synchronize(corner.device)


def _singular_values(optimum: Sequence[float]) -> torch.Tensor:
    """Descending, (min(m, n),), from the optimal errors: what each next rank takes away."""
    squares = torch.tensor(optimum, dtype=torch.float64).square()
    return (squares[:-1] - squares[1:]).clamp(min=0).sqrt()


def _free_memory(device: torch.device) -> int:
    """Bytes free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
