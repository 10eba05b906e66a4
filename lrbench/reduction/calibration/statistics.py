"""What a run asks of calibration: the statistics of one weight's inputs, collected once for all reducers and runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lrbench.errors import LrbenchError, ReducerError
from lrbench.models.load import LoadedModel
from lrbench.models.slots import WeightSlot
from lrbench.reduction.calibration.activations import Activations, Collected
from lrbench.reduction.calibration.cache import Cache, Entry
from lrbench.reduction.calibration.gradients import fisher
from lrbench.reduction.calibration.loss import text_loss
from lrbench.reduction.calibration.moments import KINDS
from lrbench.reduction.calibration.overlap import evaluated_in
from lrbench.reduction.calibration.refusal import TOKENS
from lrbench.reduction.calibration.samples import Samples, draw
from lrbench.reduction.calibration.sources import NAME, TEXT, read_text
from lrbench.suite.load import Suite
from lrbench.system.text import one_line

if TYPE_CHECKING:
    from lrbench.reduction.plan import Cell
    from lrbench.tasks.frozen_requests import FrozenRequests


def prepare(
    suite: Suite, loaded: LoadedModel, requests: FrozenRequests, longest: int, notify: Callable[[str], None]
) -> Calibration:
    """Reads the suite's calibration text and draws its windows; nothing is collected yet.

    Args:
        suite: has a calibration.
        loaded: the model, with its original weights.
        requests: all that is evaluated.
        longest: row that the model takes, in tokens.
        notify: told in one line what takes long, or goes another way.

    Raises:
        SuiteError: the text cannot be had, is too short, or holds what is evaluated.
    """
    documents = read_text(suite, {name: frozen.task for name, frozen in requests.tasks.items()}, notify)
    samples = draw(suite, documents, loaded.tokenizer, longest)
    found = evaluated_in(samples.passages, requests)
    if found is not None:
        task, document = found
        where = TEXT if suite.calibration is not None and suite.calibration.text is not None else NAME
        raise suite.error(
            where,
            f"the calibration text holds document {document} of task {task!r}, which is evaluated; calibrate on other "
            "text, such as a training split",
        )
    return Calibration(suite, loaded, samples, notify)


def prepare_again(suite: Suite, loaded: LoadedModel, longest: int, notify: Callable[[str], None]) -> Calibration:
    """As `prepare`, for a run that has been made: what is evaluated was compared then.

    Raises:
        SuiteError: the text cannot be had, or is too short.
    """
    return Calibration(suite, loaded, draw(suite, read_text(suite, {}, notify), loaded.tokenizer, longest), notify)


@dataclass(frozen=True)
class _Held:
    """A statistic on a device."""

    source: str
    device: torch.device
    plain: torch.Tensor
    damped: torch.Tensor
    seconds: float
    versions: tuple[int, int]

    def fits(self, source: str | None, device: torch.device) -> bool:
        """Whether it is that of an input, there, and nobody has written to it."""
        untouched = (self.plain._version, self.damped._version) == self.versions
        return untouched and (self.source, self.device) == (source, device)


class Calibration:
    """The statistics of one model on one suite's windows: from the cache, else collected when first asked for.

    Nothing is kept in memory but the last statistic of each kind.
    """

    def __init__(self, suite: Suite, loaded: LoadedModel, samples: Samples, notify: Callable[[str], None]) -> None:
        assert suite.calibration is not None
        self._spec = suite.calibration
        self._loaded, self._samples, self._notify = loaded, samples, notify
        self._wanted: dict[str, set[str]] = {}
        self._slots: dict[str, WeightSlot] = {}
        self._refused: dict[tuple[str, str], str] = {}
        self._held: dict[str, _Held] = {}
        self._activations: Activations | None = None
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
        """What of the calibration defines a cell's result: nothing where it has no part in it."""
        if not cell.calibrated:
            return {}
        damping = {"damping": self._spec.damping} if "second_moment" in cell.needs else {}
        return {"calibration": {"tokens": self._samples.hash, "needs": sorted(cell.needs), **damping}}

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        samples, length = self._samples.windows.shape
        return {
            **self._spec.resolved(),
            "samples": samples,
            "length": length,
            "text_tokens": self._samples.tokens,
            "tokens_hash": self._samples.hash,
        }

    def expect(self, cells: Iterable[Cell]) -> None:
        """Says which cells will ask, so that one pass serves them all."""
        for cell in cells:
            if cell.method is not None and not cell.skip and not cell.failure:
                for slot in cell.slots:
                    self._want(slot, cell.needs)

    def statistics(self, slot: WeightSlot, needs: frozenset[str]) -> tuple[dict[str, torch.Tensor], float]:
        """A slot's statistics by kind, damped, on its device; and seconds, its share of what collecting them cost.

        The same tensors are returned for weights that share their inputs, one after the other; not to be written to.

        Raises:
            ReducerError: they cannot be had for this slot; says why.
            InputError: they cannot be kept on disk.
        """
        self._want(slot, needs)
        found: dict[str, torch.Tensor] = {}
        seconds = 0.0
        for kind in sorted(needs):
            held = self._hold(slot, kind)
            found[kind] = held.damped
            seconds += held.seconds
        return found, seconds

    def second_moment(self, slot: WeightSlot) -> torch.Tensor:
        """E[x xᵀ] (in, in) of a slot's inputs without damping, on its device. Raises as `statistics`."""
        self._want(slot, frozenset({"second_moment"}))
        return self._hold(slot, "second_moment").plain

    def loss(self) -> float:
        """Nats by which a token of the windows is unexpected, to the model as it is now; see `text_loss`."""
        return text_loss(self._loaded.model, self._samples.windows)

    def distrust(self) -> None:
        """Forgets what was collected by this process, on disk too: the model may not have been the model."""
        self._held.clear()
        self._cache.remove_written()

    def _want(self, slot: WeightSlot, kinds: Iterable[str]) -> None:
        self._slots[slot.name] = slot
        self._wanted.setdefault(slot.name, set()).update(kinds)

    def _hold(self, slot: WeightSlot, kind: str) -> _Held:
        """A statistic on the slot's device; it takes the place of the last one of its kind."""
        device = slot.tensor().device
        if kind not in self._held or not self._held[kind].fits(self._source(slot.name, kind), device):
            self._held.pop(kind, None)
            source, entry = self._entry(slot, kind)
            plain = entry.tensor.to(device)
            damping = self._spec.damping if kind == "second_moment" else 0.0
            damped = plain
            if damping:
                damped = plain.clone()
                damped.diagonal().add_(damping * float(plain.diagonal().double().mean()))
            versions = plain._version, damped._version
            self._held[kind] = _Held(source, device, plain, damped, entry.seconds / entry.shared, versions)
        return self._held[kind]

    def _entry(self, slot: WeightSlot, kind: str) -> tuple[str, Entry]:
        """The input that a slot takes, and its statistic."""
        for last in (False, True):
            if (slot.name, kind) in self._refused:
                break
            source = self._source(slot.name, kind)
            entry = self._cache.read(kind, source) if source is not None else None
            if source is not None and entry is not None:
                return source, entry
            if not last:
                self._collect()
        why = self._refused.get((slot.name, kind), "it was collected, and is not in the cache; is that being deleted?")
        raise ReducerError(f"{slot.name}: cannot be calibrated: {why}")

    def _source(self, name: str, kind: str) -> str | None:
        return self._cache.inputs().get(name) if kind in KINDS else name

    def _collect(self) -> None:
        """Collects all that is wanted and not there."""
        missing: dict[str, set[str]] = {}
        for name, kinds in self._wanted.items():
            for kind in kinds:
                source = self._source(name, kind)
                if (name, kind) not in self._refused and not (source and self._cache.has(kind, source)):
                    missing.setdefault(name, set()).add(kind)
        samples, length = self._samples.windows.shape
        self._notify(
            f"calibrating {self._loaded.label}: {', '.join(sorted(set().union(*missing.values())))} of "
            f"{len(missing)} weights on {samples} samples of {length} tokens"
        )
        try:
            self._collect_activations(
                {name: kinds & set(KINDS) for name, kinds in missing.items() if kinds & set(KINDS)}
            )
            self._collect_fisher([self._slots[name] for name, kinds in missing.items() if "fisher" in kinds])
        except Exception as error:  # torch and the model's own code raise whatever they like
            reason = f"the model failed on the calibration text: {one_line(error)}"
            if isinstance(error, torch.OutOfMemoryError):
                reason = f"out of memory on the calibration text; set a smaller length than {length}"
            if isinstance(error, LrbenchError):
                reason = str(error)
            for name, kinds in missing.items():
                for kind in kinds:
                    self._refused.setdefault((name, kind), reason)

    def _collect_activations(self, missing: Mapping[str, set[str]]) -> None:
        if not missing:
            return
        if self._activations is None:
            self._activations = Activations(
                self._loaded.model, self._loaded.inventory, self._samples.windows, self._notify
            )
        survey = self._activations.survey
        self._cache.add_inputs(survey.entered)
        wanted: dict[str, set[str]] = {}
        for name, kinds in missing.items():
            if name in survey.refused or name not in survey.entered:
                reason = survey.refused.get(name, TOKENS)
                self._refuse((name,), kinds, reason)
                continue
            wanted.setdefault(survey.entered[name], set()).update(kinds)
        if wanted:
            for collected in self._activations.collect({name: frozenset(kinds) for name, kinds in wanted.items()}):
                self._keep(collected, sorted(wanted[collected.input.name]))

    def _keep(self, collected: Collected, kinds: list[str]) -> None:
        one, moments = collected.input, collected.moments
        if moments is None:
            self._refuse(one.weights, kinds, collected.failure)
            return
        for kind in kinds:
            reason = _unusable(kind, moments.tokens, one.features)
            if not reason:
                tensor = moments.mean(kind)
                reason = _wrong(tensor)
            if reason:
                self._refuse(one.weights, [kind], reason)
            else:
                self._cache.write(kind, one.name, Entry(tensor, collected.seconds / len(kinds), len(one.weights)))

    def _collect_fisher(self, slots: list[WeightSlot]) -> None:
        if not slots:
            return
        found, seconds = fisher(self._loaded.model, slots, self._samples.windows)
        for name, tensor in found.items():
            reason = _wrong(tensor)
            if reason:
                self._refuse((name,), ["fisher"], reason)
            else:
                self._cache.write("fisher", name, Entry(tensor, seconds, 1))

    def _refuse(self, names: Iterable[str], kinds: Iterable[str], reason: str) -> None:
        for name in names:
            for kind in kinds:
                self._refused[name, kind] = reason


def _unusable(kind: str, tokens: int, features: int) -> str:
    if not tokens:
        return "no token of the calibration text came to it; take more text"
    if kind == "second_moment" and tokens < features:
        return (
            f"{tokens:,} tokens of the calibration text came to it, fewer than its {features:,} inputs; take more text"
        )
    return ""


def _wrong(tensor: torch.Tensor) -> str:
    if not bool(tensor.isfinite().all()):
        return "its statistics on the calibration text are not finite"
    return "" if bool(tensor.any()) else "its statistics on the calibration text are all zero"
