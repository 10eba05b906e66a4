"""Fetches all that suites need from the Hugging Face hub into a folder, for runs without network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import huggingface_hub.utils

from lrbench.errors import InputError, LrbenchError, MissingError
from lrbench.models.hub_files import HubFiles
from lrbench.models.loading_errors import unreachable
from lrbench.run.hub_needs import FetchedDataset, FetchedFiles, FetchedManifest, loading_faults, missing, needs_of
from lrbench.run.inputs import tasks_of
from lrbench.suite.load import Suite
from lrbench.system import files
from lrbench.system.offline import DATASETS, PARTIAL, filling, without_network
from lrbench.system.text import one_line
from lrbench.tasks.hub_datasets import HubDataset, merged
from lrbench.tasks.metric_trial import try_metrics
from lrbench.tasks.saved_datasets import before_reading

Notify = Callable[[str], None]


def fetch(
    suites: Sequence[Suite],
    folder: Path,
    notify: Notify,
    *,
    bars: bool = False,
    dry_run: bool = False,
    trust_remote_code: bool = False,
) -> bool:
    """Fetches what suites need into a folder; what is already there is kept.

    Args:
        folder: made if it is missing.
        notify: called with each line of the plan and of the progress.
        bars: whether the libraries show their progress bars.
        dry_run: whether to stop before the first download.
        trust_remote_code: lets models whose suite asks for it run their repositories' own code.

    Returns:
        Whether everything is there, by the test that `run --offline` makes; False after a dry run.

    Raises:
        InputError: a suite is wrong, the hub cannot be reached, the folder cannot be written, or the disk is too small.
        MissingError: the hub lacks something, or does not give it to this user; nothing was fetched.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.locked(folder / ".lock"), filling(folder), _bars(bars):
            manifest = FetchedManifest.read(folder)
            fetcher = _Fetcher(folder, manifest, notify)
            every = list(dict.fromkeys(need for suite in suites for need in needs_of(suite)))
            needs: list[HubFiles | HubDataset] = [need for need in every if isinstance(need, HubFiles)]
            needs += merged(need for need in every if isinstance(need, HubDataset))
            _list_local(suites, notify)
            planned = fetcher.plan([need for need in needs if manifest.lack_of(need, folder) is not None])
            if dry_run:
                return False
            manifest.write(folder)
            for need in planned:
                fetcher.fetch(need)
            for suite in suites:
                loading_faults(suite, trust_remote_code=trust_remote_code)  # the cache learns what the hub lacks
            fetcher.read_tasks(suites)
            fetcher.keep_commits()
            fetcher.remove_partial()
    except files.Timeout:
        raise InputError(f"{folder}: another lrbench is fetching into it; wait for it") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be filled: {one_line(error)}") from error
    with without_network(folder):
        lines = [line for suite in suites for line in missing(suite, folder, trust_remote_code=trust_remote_code)]
    for line in dict.fromkeys(lines):
        notify(f"not complete: {line}")
    return not lines


class _Fetcher:
    """Fetches into one folder, and records each need in its manifest as soon as it is there."""

    def __init__(self, folder: Path, manifest: FetchedManifest, notify: Notify) -> None:
        self._folder, self._manifest, self._notify = folder, manifest, notify
        self._files: dict[HubFiles, list[str]] = {}

    def plan(self, needs: Sequence[HubFiles | HubDataset]) -> list[HubFiles | HubDataset]:
        """Shows the sizes of the needs, which the hub tells. Raises MissingError for all that it does not have."""
        faults, total = [], 0
        for need in needs:
            try:
                sizes = self._sizes(need)
            except LrbenchError as error:
                if unreachable(error):
                    raise InputError(f"the Hugging Face hub cannot be reached: {one_line(error)}") from error
                faults.append(one_line(error))
                continue
            total += sum(sizes.values())
            self._notify(f"{need.label}: {_count(len(sizes), 'file')}, {_size(sum(sizes.values()))}")
        if faults:
            raise MissingError(faults)
        free = shutil.disk_usage(self._folder).free
        if needs:
            self._notify(f"{_size(total)} to fetch, {_size(free)} free in {self._folder}")
        else:
            self._notify(f"nothing to fetch: {self._folder} has every model and data set that the suites name")
        if total > free:
            raise InputError(f"{self._folder}: {_size(total)} do not fit into {_size(free)}; choose another disk")
        return list(needs)

    def _sizes(self, need: HubFiles | HubDataset) -> dict[str, int]:
        if isinstance(need, HubDataset):
            return need.files()[1]
        sizes = need.sizes(self._commit(need))
        self._files[need] = list(sizes)
        return sizes

    def _commit(self, need: HubFiles) -> str | None:
        """The commit of the repository's files that are there already, which the others must have too."""
        known = self._manifest.models.get(need.place)
        return known.commit if known is not None else None

    def fetch(self, need: HubFiles | HubDataset) -> None:
        """Fetches one need. Raises InputError if the hub does not give it."""
        self._notify(f"fetching {need.label}")
        if isinstance(need, HubDataset):
            self._fetch_dataset(need)
        else:
            self._fetch_files(need)
        self._manifest.write(self._folder)

    def _fetch_files(self, need: HubFiles) -> None:
        commit = need.download(self._commit(need), self._files[need])
        snapshot = need.snapshot(self._folder / "hub", commit)
        sizes = {name: (snapshot / name).stat().st_size for name in self._files[need]}
        entry = self._manifest.models.get(need.place, FetchedFiles(commit=commit))
        parts = list(dict.fromkeys([*entry.parts, need.part]))
        self._manifest.models[need.place] = FetchedFiles(commit=commit, parts=parts, files=entry.files | sizes)

    def _fetch_dataset(self, dataset: HubDataset) -> None:
        commit, _ = dataset.files()
        new = FetchedDataset(repository=dataset.repository, commit=commit)
        saved, absent = dataset.save(self._folder / DATASETS)
        entry = self._manifest.datasets.setdefault(dataset.name, new)
        entry.splits = list(dict.fromkeys([*entry.splits, *saved]))
        entry.absent = list(dict.fromkeys([*entry.absent, *absent]))
        entry.all = entry.all or dataset.splits is None

    def read_tasks(self, suites: Sequence[Suite]) -> None:
        """Reads all tasks, and tries their metrics: their code may ask the hub for more, which is kept as well."""

        def keep(dataset: HubDataset) -> None:
            if self._manifest.lack_of(dataset, self._folder) is not None:
                self.fetch(dataset)

        for suite in suites:
            self._notify(f"reading the tasks of {suite.name}, for what their own code loads")
            with before_reading(keep):
                tasks = tasks_of(suite)
            for name, task in tasks.tasks.items():
                try:
                    try_metrics(name, task)
                except Exception as error:  # the task's code may raise anything
                    self._notify(f"task {name!r}: its metrics do not take an invented answer: {one_line(error)}")

    def keep_commits(self) -> None:
        """Makes branches name the fetched commits; reading a model from the hub makes them name the newest."""
        for place, entry in self._manifest.models.items():
            repository, _, revision = place.rpartition("@")
            branch = self._folder / "hub" / f"models--{repository.replace('/', '--')}" / "refs" / revision
            if branch.is_file():
                files.write(branch, entry.commit)

    def remove_partial(self) -> None:
        """Removes what data sets were saved from, and what killed downloads have left."""
        shutil.rmtree(self._folder / PARTIAL, ignore_errors=True)
        for dataset in self._manifest.datasets.values():
            cached = self._folder / "hub" / f"datasets--{dataset.repository.replace('/', '--')}"
            shutil.rmtree(cached, ignore_errors=True)
        for leftovers in [*self._folder.glob("hub/*/blobs"), self._folder / "hub" / ".locks"]:
            shutil.rmtree(leftovers, ignore_errors=True)  # whole files stand under `snapshots`


def _list_local(suites: Sequence[Suite], notify: Notify) -> None:
    """Names the suites' own files, which stay where they are."""
    for suite in suites:
        for path in dict.fromkeys(suite.local_paths().values()):
            notify(f"not fetched, take it along: {path}")


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Hides the progress bars of the hub's libraries unless `shown`."""
    if shown:
        yield
        return
    huggingface_hub.utils.disable_progress_bars()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        huggingface_hub.utils.enable_progress_bars()
        datasets.enable_progress_bars()


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def _size(size: float) -> str:
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"
