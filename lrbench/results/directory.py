"""A run's directory: the manifest, the environments, the rows, the per-document scores. All text, all appendable.

manifest.json         the resolved suite, hashes of weights, tasks and prompts, the engine
environments.jsonl    hardware and versions, one line per environment, keyed by hash
rows.jsonl            one line per scored cell; the last line of a cell wins
samples/CELL.jsonl    one line per document: its metrics and log-likelihoods
partial/CELL.jsonl    while requests are scored in parts: the answers to an unfinished cell, one line per part
partial/block-CELL.jsonl  during a race: a row and its per-document scores on one block of documents
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from lrbench.errors import InputError, StorageError
from lrbench.results.manifest import parse
from lrbench.results.rows import Row
from lrbench.system import files
from lrbench.system.text import is_plain, one_line

#: The file name prefix of a row on one block of documents.
BLOCK = "block-"


class RunDirectory:
    """Reads and appends to one run's directory.

    Rows are appended with flush and fsync. A torn last line, of a process killed while writing, is ignored by readers
    and removed before the next append.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @property
    def rows_file(self) -> Path:
        """The file of rows."""
        return self.path / "rows.jsonl"

    @property
    def manifest_file(self) -> Path:
        """The file of the manifest."""
        return self.path / "manifest.json"

    def rows(self) -> dict[str, Row]:
        """The last row of every cell, in order of first appearance.

        Raises:
            InputError: a line (other than a torn last one) is not a row; names file and line.
        """
        rows: dict[str, Row] = {}
        for number, line in enumerate(_whole_lines(self.rows_file), 1):
            try:
                row = Row.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                reason = ": ".join(filter(None, ("not a row", where, first["msg"])))
                raise InputError(f"{self.rows_file}:{number}: {reason}") from None
            rows[row.cell] = row
        return rows

    def append(self, *rows: Row) -> None:
        """Appends rows durably, in one write."""
        if not rows:
            return
        self._append(self.rows_file, "\n".join(row.model_dump_json(by_alias=True) for row in rows))

    def manifest(self) -> dict[str, Any]:
        """The manifest as plain data. Raises InputError if it is missing, not JSON, or has a wrong type in it."""
        try:
            manifest = from_json(self.manifest_file.read_bytes())
            if not isinstance(manifest, dict):
                raise ValueError("not a mapping")
            parse(manifest)
            return manifest
        except (OSError, ValueError) as error:
            hint = (
                "delete it, and run the suite again: its rows are kept"
                if self.rows_file.exists()
                else "is it a run directory?"
            )
            raise InputError(f"{self.manifest_file}: {one_line(error)}; {hint}") from None

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replaces the manifest atomically."""
        self._write(self.manifest_file, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")

    def environments(self) -> dict[str, dict[str, Any]]:
        """Hash -> hardware and versions."""
        file = self.path / "environments.jsonl"
        entries: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(_whole_lines(file), 1):
            try:
                entry = from_json(line)
                if not isinstance(entry["hash"], str):
                    raise TypeError("its hash is no text")
                entries[entry["hash"]] = entry
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{file}:{number}: not an environment: {one_line(error)}") from None
        return entries

    def add_environment(self, entry: dict[str, Any]) -> None:
        """Records an environment if it is not recorded yet."""
        if entry["hash"] not in self.environments():
            self._append(self.path / "environments.jsonl", json.dumps(entry, ensure_ascii=False))

    def write_samples(self, cell: str, samples: Iterable[dict[str, Any]]) -> None:
        """Writes a cell's per-document scores. Call before its row is written, so that no row lacks its samples."""
        lines = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        self._write(self.samples_file(cell), "".join(lines))

    def has_samples(self, cell: str) -> bool:
        """Whether a cell has per-document scores."""
        return self.samples_file(cell).is_file()

    def samples_file(self, cell: str) -> Path:
        """The file of a cell's per-document scores. Raises InputError if `cell` is not a cell's hash."""
        return self._of_cell("samples", cell)

    def partial(self, cell: str) -> list[Any]:
        """The entries of `add_partial` for a cell. Lines that are not JSON are skipped: their part is scored again."""
        entries = []
        for line in _whole_lines(self._partial_file(cell)):
            try:
                entries.append(from_json(line))
            except ValueError:
                continue
        return entries

    def add_partial(self, cell: str, entry: dict[str, Any]) -> None:
        """Stores part of an unfinished cell durably. Numbers, NaN and infinities are read back exactly."""
        self._append(self._partial_file(cell), json.dumps(entry, ensure_ascii=False))

    def drop_partial(self, cell: str | None = None) -> None:
        """Removes the partial entries of a cell, or of all cells."""
        if cell is None:
            shutil.rmtree(self.path / "partial", ignore_errors=True)
        else:
            with _to_disk(self._partial_file(cell)):
                self._partial_file(cell).unlink(missing_ok=True)

    def has_partial(self) -> bool:
        """Whether there are partial entries."""
        return any((self.path / "partial").glob("*.jsonl"))

    def has_blocks(self) -> bool:
        """Whether there are rows on blocks of documents, of an unfinished race."""
        return any((self.path / "partial").glob(f"{BLOCK}*.jsonl"))

    def drop_blocks(self) -> None:
        """Removes rows on blocks of documents."""
        for path in (self.path / "partial").glob(f"{BLOCK}*.jsonl"):
            path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the directory against other processes; creates it if it is missing.

        Raises:
            Timeout: another process holds the lock.
            OSError: the directory cannot be created, written to or locked.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with files.locked(self.path / ".lock"):
            for folder in (self.path, self.path / "samples"):
                files.remove_leftovers(folder)
            yield

    def _write(self, path: Path, text: str) -> None:
        with _to_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, text)

    def _append(self, path: Path, line: str) -> None:
        with _to_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.append(path, line)

    def _partial_file(self, cell: str) -> Path:
        return self._of_cell("partial", cell)

    def _of_cell(self, folder: str, cell: str) -> Path:
        if not is_plain(cell):
            raise InputError(f"{self.path}: {cell!r} is no cell's hash; it would not name a file in {folder}/")
        return self.path / folder / f"{cell}.jsonl"

    def samples(self, cell: str) -> list[dict[str, Any]]:
        """A cell's per-document scores: dicts with `task`, `doc` (index), `metrics` {metric: value}, and more.

        Raises:
            InputError: a line is not JSON; names file and line.
        """
        path = self.samples_file(cell)
        documents = []
        for number, line in enumerate(_whole_lines(path), 1):
            try:
                documents.append(from_json(line))
            except ValueError as error:
                raise InputError(
                    f"{path}:{number}: not a document's scores: {one_line(error)}; delete the file to do without, or "
                    "score the cell again with --force"
                ) from None
        return documents


def open_run(path: Path) -> RunDirectory:
    """A run directory that exists. Raises InputError where `path` holds no rows."""
    run = RunDirectory(path)
    if not run.rows_file.is_file():
        raise InputError(f"{path}: no run here (rows.jsonl is missing); give the directory that `lrbench run` printed")
    return run


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The lines that end in a newline, without a torn last line; none if the file is missing."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


@contextmanager
def _to_disk(path: Path) -> Iterator[None]:
    """Raises StorageError, in one line, if a file cannot be written. Earlier content stays."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {error.strerror or one_line(error)}; the rows so far are kept: make room or "
            "mend it, and the same command goes on"
        ) from error
