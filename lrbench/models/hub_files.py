"""The files of a suite's models on the Hugging Face hub: which are read, and how large they are."""

from __future__ import annotations

import fnmatch
import glob
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download

from lrbench.errors import ModelError
from lrbench.models.adapter import FILES as ADAPTER_FILES
from lrbench.models.loading_errors import failing
from lrbench.suite.bundled import bundled
from lrbench.suite.load import ModelSpec

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")  # configuration and tokenizer


@dataclass(frozen=True)
class HubFiles:
    """The files of a repository that one part of a model is read from.

    Attributes:
        repository, revision: on the hub; None for the main branch.
        part: `model`, `configuration`, `tokenizer` or `adapter`, or the name of a GGUF file.
        code: whether the repository's own code is read as well.
    """

    repository: str
    revision: str | None
    part: str
    code: bool = False

    @property
    def place(self) -> str:
        """The repository with its revision."""
        return f"{self.repository}@{self.revision or 'main'}"

    @property
    def small(self) -> bool:
        """Whether the files are among those of the part `model`."""
        return self.part in ("configuration", "tokenizer")

    @property
    def label(self) -> str:
        """The files' name in messages."""
        revision = f" at revision {self.revision}" if self.revision else ""
        part = f"GGUF file {self.part} of" if self.part.endswith(".gguf") else self.part
        return f"{part} {self.repository}{revision}"

    def sizes(self, commit: str | None = None) -> dict[str, int]:
        """The files' sizes in bytes, at a commit or else at the revision. Asks the hub.

        Raises:
            ModelError: the hub does not have the repository, the revision or the files, or not for this user; or it
                cannot be reached.
        """
        with failing(self.repository, self.revision):
            revision = commit or self.revision
            info = HfApi().model_info(self.repository, revision=revision, files_metadata=True)
            every = {file.rfilename: file.size or 0 for file in info.siblings or ()}
            return {name: every[name] for name in self._chosen(every, revision)}

    def snapshot(self, cache: Path, commit: str) -> Path:
        """The folder of a commit's files in a cache of the hub."""
        return cache / f"models--{self.repository.replace('/', '--')}" / "snapshots" / commit

    def download(self, commit: str | None, names: Iterable[str]) -> str:
        """Downloads files to the hub's cache, where an interrupted download goes on. Returns the commit.

        Args:
            commit: a commit that the cache has for the revision; None if there is none yet.
            names: of the files.

        Raises:
            ModelError: as `sizes`.
        """
        with failing(self.repository, self.revision):
            folder = snapshot_download(
                self.repository, revision=commit or self.revision, allow_patterns=[glob.escape(name) for name in names]
            )
        return Path(folder).name

    def _chosen(self, every: Iterable[str], revision: str | None) -> list[str]:
        names = [name for name in every if "/" not in name or name.startswith("additional_chat_templates/")]
        if self.part.endswith(".gguf"):
            return self._required([self.part], every)
        if self.part == "adapter":
            return self._required(ADAPTER_FILES, names)
        small = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in _SMALL)]
        if self.code:
            small += [name for name in every if name.endswith(".py")]
        if self.part == "configuration":
            return self._required(["config.json"], names) + [name for name in small if name.endswith(".py")]
        if self.part == "tokenizer":
            return [name for name in small if name != _INDEX]
        self._required(["config.json"], names)
        if _WEIGHTS in names:
            return [*(name for name in small if name != _INDEX), _WEIGHTS]
        if _INDEX not in names:
            raise ModelError(
                f"{self.repository}: its weights are not stored as safetensors, and pickles (.bin, .pt) are not read"
            )
        index = Path(hf_hub_download(self.repository, _INDEX, revision=revision)).read_text(encoding="utf-8")
        return small + self._required(sorted(set(json.loads(index)["weight_map"].values())), every)

    def _required(self, needed: Iterable[str], names: Iterable[str]) -> list[str]:
        for name in needed:
            if name not in names:
                raise ModelError(f"{self.repository}: has no file {name}")
        return list(needed)


def hub_files(spec: ModelSpec) -> Iterator[HubFiles]:
    """The files on the hub that a model of a suite is read from."""
    code = bool(spec.trust_remote_code)
    if _on_hub(spec.pretrained):
        yield HubFiles(str(spec.pretrained), spec.revision, spec.gguf or "model", code)
    if _on_hub(spec.config):
        yield HubFiles(str(spec.config), None, "configuration", code)
    if _on_hub(spec.tokenizer):
        yield HubFiles(str(spec.tokenizer), None, "tokenizer")
    if _on_hub(spec.adapter):
        yield HubFiles(str(spec.adapter), None, "adapter")


def _on_hub(name: object) -> bool:
    return isinstance(name, str) and name not in bundled() and not Path(name).exists()
