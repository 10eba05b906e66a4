"""The calibration statistics of weights, collected once for all reducers and runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lrbench.errors import LrbenchError, ReducerError
from lrbench.models.load import LoadedModel
from lrbench.models.slots import WeightSlot
from lrbench.reduction.calibration.activations import Activations, Collected
from lrbench.reduction.calibration.cache import Cache, CacheEntry
from lrbench.reduction.calibration.gradients import fisher, output_gradients
from lrbench.reduction.calibration.labels import Labels
from lrbench.reduction.calibration.loss import text_loss
from lrbench.reduction.calibration.loss_moments import MOMENTS, LossMoments
from lrbench.reduction.calibration.moments import KINDS
from lrbench.reduction.calibration.overlap import find_evaluated_document
from lrbench.reduction.calibration.refusal import TOKENS, uncalibrated
from lrbench.reduction.calibration.samples import Samples, draw
from lrbench.reduction.calibration.sources import read_text
from lrbench.suite.load import CalibrationSpec
from lrbench.system.text import one_line

if TYPE_CHECKING:
    from lrbench.reduction.plan import Cell
    from lrbench.tasks.frozen_requests import FrozenRequests


#: The kinds of statistics that are computed from gradients of the loss, and depend on its labels.
_GRADIENTS = frozenset({"fisher", "output_gradient_moment"})
#: The kinds that are matrices, and the dimensions that they have one row for.
_MATRICES = {"second_moment": "inputs", "output_gradient_moment": "outputs"}


def prepare(
    spec: CalibrationSpec,
    task_paths: Sequence[Path],
    loaded: LoadedModel,
    requests: FrozenRequests,
    longest: int,
    notify: Callable[[str], None],
    *,
    held_out: bool = False,
) -> Calibration:
    """Reads a suite's calibration text and draws its windows; statistics are collected later.

    Args:
        task_paths: as `read_text`.
        loaded: the model, with its original weights.
        requests: all evaluated requests.
        longest: the model's maximum length, in tokens.
        notify: called with one line before slow steps and fallbacks.
        held_out: whether to draw held-out windows too.

    Raises:
        SuiteError: the text cannot be read, is too short, or contains an evaluated document.
    """
    documents = read_text(spec, task_paths, {name: frozen.task for name, frozen in requests.tasks.items()}, notify)
    samples = draw(spec, documents, loaded.tokenizer, longest, held_out=held_out)
    overlap = find_evaluated_document(samples.passages, requests)
    if overlap is not None:
        task, document = overlap
        raise spec.error_at(
            f"the calibration text contains document {document} of the evaluated task {task!r}; calibrate on other "
            "text, such as a training split",
            spec.source,
        )
    return Calibration(spec, loaded, samples, notify)


def prepare_again(
    spec: CalibrationSpec,
    task_paths: Sequence[Path],
    loaded: LoadedModel,
    longest: int,
    notify: Callable[[str], None],
    *,
    held_out: bool = False,
) -> Calibration:
    """As `prepare`, for a finished run, without the comparison with evaluated documents.

    Raises:
        SuiteError: the text cannot be read or is too short.
    """
    documents = read_text(spec, task_paths, {}, notify)
    samples = draw(spec, documents, loaded.tokenizer, longest, held_out=held_out)
    return Calibration(spec, loaded, samples, notify)


@dataclass(frozen=True)
class _Loaded:
    """A statistic on a device."""

    source: str
    device: torch.device
    plain: torch.Tensor
    damped: torch.Tensor
    seconds: float
    tokens: int
    versions: tuple[int, int]

    def fits(self, source: str | None, device: torch.device) -> bool:
        """Whether it belongs to this input and device and is unmodified."""
        untouched = (self.plain._version, self.damped._version) == self.versions
        return untouched and (self.source, self.device) == (source, device)


class Calibration:
    """The statistics of one model on one suite's windows: read from the cache, else collected at first use.

    Only the last statistic of each kind is kept in memory.
    """

    def __init__(
        self, spec: CalibrationSpec, loaded: LoadedModel, samples: Samples, notify: Callable[[str], None]
    ) -> None:
        self._spec, self._loaded, self._samples, self._notify = spec, loaded, samples, notify
        self._wanted: dict[str, set[str]] = {}
        self._slots: dict[str, WeightSlot] = {}
        self._refused: dict[tuple[str, str], str] = {}
        self._last: dict[str, _Loaded] = {}
        self._activations: Activations | None = None
        self._labels = Labels(spec.fisher, spec.seed)
        self._notified: set[str] = set()
        self._cache = Cache(
            {
                "weights": loaded.weight_hash,
                "config": loaded.config_hash,
                "tokens": samples.hash,
                "dtype": str(loaded.dtype),
                "device": loaded.device.type,
            },
            notify,
        )

    def definition(self, cell: Cell) -> dict[str, Any]:
        """The calibration's part of a cell's hash; empty for a cell that does not depend on it."""
        if not cell.calibrated:
            return {}
        damping = {"damping": self._spec.damping} if "second_moment" in cell.needs else {}
        labels = self._labels.definition if cell.needs & _GRADIENTS else {}
        text = {"tokens": self._samples.hash, "needs": sorted(cell.needs), **damping, **labels}
        if cell.allocation == "loss":
            text["held_out"] = hashlib.sha256(repr(self._samples.held_out.tolist()).encode()).hexdigest()
        return {"calibration": text}

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        samples, length = self._samples.windows.shape
        return {
            **self._spec.resolved(),
            "samples": samples,
            "length": length,
            "text_tokens": self._samples.tokens,
            "tokens_hash": self._samples.hash,
            "held_out": len(self._samples.held_out),
        }

    def expect(self, cells: Iterable[Cell]) -> None:
        """Registers the statistics that cells and their predicted losses need, so that they are collected together."""
        for cell in cells:
            if cell.method is not None and not cell.skip and not cell.failure:
                for slot in cell.slots:
                    self._want(slot, cell.needs)
                    if not uncalibrated(slot, MOMENTS):
                        self._want(slot, MOMENTS)

    def statistics(self, slot: WeightSlot, needs: frozenset[str]) -> tuple[dict[str, torch.Tensor], float]:
        """A slot's damped statistics by kind, on its device, and its fraction of the seconds of collecting them.

        Consecutive weights with the same input get the same tensors, which must not be written to.

        Raises:
            ReducerError: the slot has no such statistics; names the reason.
            InputError: the cache cannot be written.
        """
        self._want(slot, needs)
        damped: dict[str, torch.Tensor] = {}
        seconds = 0.0
        for kind in sorted(needs):
            loaded = self._load(slot, kind)
            damped[kind] = loaded.damped
            seconds += loaded.seconds
        return damped, seconds

    def loss_moments(self, slot: WeightSlot) -> LossMoments | None:
        """The moments of a slot's predicted loss, if both are among the wanted statistics and can be computed."""
        if not self._wanted.get(slot.name, set()).issuperset(MOMENTS):
            return None
        try:
            H, G = self._load(slot, "second_moment"), self._load(slot, "output_gradient_moment")
        except ReducerError:
            reasons = [self._refused.get((slot.name, kind)) for kind in sorted(MOMENTS)]
            self._notify_once(f"some weights have no predicted loss: {next(filter(None, reasons), 'no statistics')}")
            return None
        samples, length = self._samples.windows.shape
        return LossMoments(H.plain, G.plain, G.tokens / (samples * (length - 1)))

    def second_moment(self, slot: WeightSlot) -> torch.Tensor:
        """E[x xᵀ] (in, in) of a slot's inputs without damping, on its device. Raises as `statistics`."""
        self._want(slot, frozenset({"second_moment"}))
        return self._load(slot, "second_moment").plain

    def loss(self) -> float:
        """The current model's mean loss on the windows, in nats per token; see `text_loss`."""
        return text_loss(self._loaded.model, self._samples.windows)

    @property
    def held_out_tokens(self) -> int:
        """The number of tokens of the held-out windows."""
        return self._samples.held_out.numel()

    def held_out_loss(self) -> float:
        """The current model's mean loss on the held-out windows, in nats per token."""
        return text_loss(self._loaded.model, self._samples.held_out)

    def distrust(self) -> None:
        """Discards everything that this process collected, also on disk: the model's weights may have been wrong."""
        self._last.clear()
        self._cache.remove_written()

    def _want(self, slot: WeightSlot, kinds: Iterable[str]) -> None:
        self._slots[slot.name] = slot
        self._wanted.setdefault(slot.name, set()).update(kinds)

    def _load(self, slot: WeightSlot, kind: str) -> _Loaded:
        """A statistic on the slot's device; replaces the last one of its kind."""
        device = slot.tensor().device
        if kind not in self._last or not self._last[kind].fits(self._source(slot.name, kind), device):
            self._last.pop(kind, None)
            source, entry = self._entry(slot, kind)
            plain = entry.tensor.to(device)
            damping = self._spec.damping if kind == "second_moment" else 0.0
            damped = plain
            if damping:
                damped = plain.clone()
                damped.diagonal().add_(damping * float(plain.diagonal().double().mean()))
            versions = plain._version, damped._version
            seconds = entry.seconds / entry.shared
            self._last[kind] = _Loaded(source, device, plain, damped, seconds, entry.tokens, versions)
        return self._last[kind]

    def _entry(self, slot: WeightSlot, kind: str) -> tuple[str, CacheEntry]:
        """The name of a slot's input, and its statistic."""
        for last in (False, True):
            if (slot.name, kind) in self._refused:
                break
            source = self._source(slot.name, kind)
            entry = self._cache.read(self._stored(kind), source) if source is not None else None
            if source is not None and entry is not None:
                return source, entry
            if not last:
                self._collect()
        default = "its statistics were collected but are not in the cache; is the cache being deleted?"
        raise ReducerError(f"{slot.name}: cannot be calibrated: {self._refused.get((slot.name, kind), default)}")

    def _stored(self, kind: str) -> str:
        """The kind in the cache, with the labels if it depends on them."""
        labels = self._labels.definition if kind in _GRADIENTS else {}
        return "-".join([kind, *map(str, labels.values())])

    def _source(self, name: str, kind: str) -> str | None:
        return self._cache.inputs().get(name) if kind in KINDS else name

    def _collect(self) -> None:
        """Collects all wanted statistics that are missing."""
        missing: dict[str, set[str]] = {}
        for name, kinds in self._wanted.items():
            for kind in kinds:
                source = self._source(name, kind)
                if (name, kind) not in self._refused and not (source and self._cache.has(self._stored(kind), source)):
                    missing.setdefault(name, set()).add(kind)
        samples, length = self._samples.windows.shape
        self._notify(
            f"calibrating {self._loaded.label}: {', '.join(sorted(set().union(*missing.values())))} of "
            f"{len(missing)} weights on {samples} samples of {length} tokens"
        )
        for stage, collect in (
            (frozenset(KINDS), self._collect_activations),
            (frozenset({"fisher"}), self._collect_fisher),
            (frozenset({"output_gradient_moment"}), self._collect_output_gradients),
        ):
            wanted = {name: needed & stage for name, needed in missing.items() if needed & stage}
            try:
                if wanted:
                    collect(wanted)
            except Exception as error:  # torch and the model's own code may raise anything
                reason = f"the model failed on the calibration text: {one_line(error)}"
                if isinstance(error, torch.OutOfMemoryError):
                    reason = f"out of memory on the calibration text; set a smaller length than {length}"
                if isinstance(error, LrbenchError):
                    reason = str(error)
                self._refuse_unless_refused(wanted, reason)

    def _notify_once(self, line: str) -> None:
        if line not in self._notified:
            self._notified.add(line)
            self._notify(line)

    def _collect_activations(self, missing: Mapping[str, set[str]]) -> None:
        if self._activations is None:
            self._activations = Activations(
                self._loaded.model, self._loaded.inventory, self._samples.windows, self._notify
            )
        survey = self._activations.survey
        self._cache.add_inputs(survey.input_of)
        wanted: dict[str, set[str]] = {}
        for name, kinds in missing.items():
            if name in survey.refused or name not in survey.input_of:
                reason = survey.refused.get(name, TOKENS)
                self._refuse((name,), kinds, reason)
                continue
            wanted.setdefault(survey.input_of[name], set()).update(kinds)
        if wanted:
            for collected in self._activations.collect({name: frozenset(kinds) for name, kinds in wanted.items()}):
                self._keep(collected, sorted(wanted[collected.input.name]))

    def _keep(self, collected: Collected, kinds: list[str]) -> None:
        source, moments = collected.input, collected.moments
        if moments is None:
            self._refuse(source.weights, kinds, collected.failure)
            return
        for kind in kinds:
            reason = _unusable(kind, moments.tokens, source.features)
            if not reason:
                tensor = moments.mean(kind)
                reason = _defect(tensor)
            if reason:
                self._refuse(source.weights, [kind], reason)
            else:
                seconds = collected.seconds / len(kinds)
                self._cache.write(kind, source.name, CacheEntry(tensor, seconds, len(source.weights), moments.tokens))

    def _collect_fisher(self, missing: Mapping[str, set[str]]) -> None:
        slots = [self._slots[name] for name in missing]
        diagonals, seconds = fisher(self._loaded.model, slots, self._samples.windows, self._labels)
        for name, tensor in diagonals.items():
            reason = _defect(tensor)
            if reason:
                self._refuse((name,), ["fisher"], reason)
            else:
                self._cache.write(self._stored("fisher"), name, CacheEntry(tensor, seconds, 1))

    def _collect_output_gradients(self, missing: Mapping[str, set[str]]) -> None:
        kind, windows = "output_gradient_moment", self._samples.windows
        enough = []
        for slot in [self._slots[name] for name in missing]:
            # Known before the passes, for the sake of memory: the moment of a head is as wide as the vocabulary.
            reason = _unusable(kind, windows.numel(), slot.about.shape[0])
            if reason and slot.layout.expert is None:
                self._refuse((slot.name,), [kind], reason)
            else:
                enough.append(slot)
        for collected in output_gradients(self._loaded.model, enough, windows, self._labels):
            slot, moments, reason = collected.slot, collected.moments, collected.failure
            if moments is not None:
                reason = _unusable(kind, moments.tokens, slot.about.shape[0])
            if moments is not None and not reason:
                tensor = moments.mean("second_moment")
                reason = _defect(tensor)
            if reason or moments is None:
                self._refuse((slot.name,), [kind], reason)
            else:
                self._cache.write(
                    self._stored(kind), slot.name, CacheEntry(tensor, collected.seconds, 1, moments.tokens)
                )

    def _refuse_unless_refused(self, missing: Mapping[str, set[str]], reason: str) -> None:
        for name, kinds in missing.items():
            for kind in kinds:
                self._refused.setdefault((name, kind), reason)

    def _refuse(self, names: Iterable[str], kinds: Iterable[str], reason: str) -> None:
        for name in names:
            for kind in kinds:
                self._refused[name, kind] = reason


def _unusable(kind: str, tokens: int, features: int) -> str:
    if not tokens:
        return "no token of the calibration text reached it; use more text"
    if kind not in _MATRICES or tokens >= features:
        return ""
    dimensions = f"{features:,} {_MATRICES[kind]}"
    return f"{tokens:,} tokens of the calibration text reached it, fewer than its {dimensions}; use more text"


def _defect(tensor: torch.Tensor) -> str:
    if not bool(tensor.isfinite().all()):
        return "its statistics on the calibration text are not finite"
    return "" if bool(tensor.any()) else "its statistics on the calibration text are all zero"
