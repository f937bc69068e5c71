"""Fetch a Whisper model from the Hugging Face hub: a checkpoint, or graphs of Optimum.

Of a repository with weights in several formats, one is fetched. Weights come last, so that a
snapshot that has them has the configuration and the tokenizer too.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
from collections.abc import Collection, Iterable
from pathlib import Path

from whisper_opt.core.errors import CheckpointError
from whisper_opt.core.json_files import parse_json, read_text
from whisper_opt.export.checkpoints.hub_client import (
    Hub,
    Listing,
    check_cached,
    is_commit,
)
from whisper_opt.runtime.optimum.directory import AUTO_ORDER, SUFFIXES, graph_names

__all__ = ["HubModel", "download_tokenizer", "find"]

_log = logging.getLogger(__name__)

_SIDECARS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer_config.json",
    "adapter_config.json",
)
# (file that must be there, files that belong to it), in order of preference
_WEIGHTS = (
    ("model.safetensors", ""),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin", ""),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
    ("model.bin", ""),
    ("adapter_model.safetensors", ""),
    ("adapter_model.bin", ""),
    ("flax_model.msgpack", ""),
    ("flax_model.msgpack.index.json", "flax_model-*-of-*.msgpack"),
)
_SINGLE_FILES = ("ggml-*.bin", "*.pt")
"""Checkpoints of one file, several of which may be in a repository."""


@dataclasses.dataclass(frozen=True)
class HubModel:
    """A model of the hub at one commit.

    Attributes:
        name: hub id.
        commit: of the revision that was asked for.
    """

    name: str
    commit: str
    _hub: Hub
    _listing: Listing | None
    """None: the hub could not be asked."""
    _folder: Path | None
    """The snapshot in the client's cache, if the hub could not be asked and there is one."""
    _failure: CheckpointError | None
    """Why the hub could not be asked."""

    def is_optimum(self) -> bool:
        """Whether it has graphs of Optimum and no checkpoint."""
        names = self._names()
        return _weights(names) is None and any(graph_names(names, each) for each in SUFFIXES)

    def checkpoint(self) -> Path:
        """Fetch the checkpoint, or find it in the client's cache; its directory.

        Raises:
            CheckpointError: it cannot be fetched, is damaged, or is in no known format.
        """
        names = self._names()
        weights = _weights(names)
        if weights is None:
            raise self._no_weights(names)
        return self._get([*_sidecars(names), *weights])

    def graphs(self, precision: str) -> Path:
        """Fetch the graphs of Optimum, or find them in the client's cache; their directory.

        Args:
            precision: of the graphs, or ``auto``: the first of ``AUTO_ORDER`` that the model has.

        Raises:
            CheckpointError: they cannot be fetched, or there are none of this precision.
        """
        names = self._names()
        found = {each: graph_names(names, each) for each in AUTO_ORDER}
        there = [each for each in AUTO_ORDER if found[each]]
        if precision == "auto" and there:
            precision = there[0]
        if precision not in there:
            raise CheckpointError(
                f"precision is {precision!r}, but the hub's {self.name!r} has no checkpoint to"
                f" export, only graphs of Optimum in {', '.join(there)}: choose one of them, or"
                " load the model that they were exported from"
            )
        graphs = found[precision]
        data = sorted(name for name in names if name.startswith(tuple(f"{g}_data" for g in graphs)))
        return self._get([*_sidecars(names), *data, *reversed(graphs)])

    def tokenizer(self) -> Path:
        """Fetch the configuration and the tokenizer, or find them; their directory.

        Raises:
            CheckpointError: they cannot be fetched.
        """
        return self._get(_sidecars(self._names()))

    def _names(self) -> Collection[str]:
        if self._listing is not None:
            return self._listing.files
        if self._folder is not None:
            return {
                path.relative_to(self._folder).as_posix()
                for path in self._folder.rglob("*")
                if path.is_file()
            }
        raise self._failure or self._hub.missing()

    def _get(self, names: list[str]) -> Path:
        """The directory of some files, whose contents are checked."""
        if self._listing is not None:
            if not names:
                raise CheckpointError(
                    f"the hub's {self.name!r} ({self.commit}) has none of {', '.join(_SIDECARS)}"
                )
            self._hub.record(self._listing, names[0])
            total = sum(self._listing.files[name].size or 0 for name in names)
            _log.info("%s@%s: %d files, %.1f MB", self.name, self.commit, len(names), total / 1e6)
            paths = [self._hub.fetch(name, self._listing) for name in names]
            return paths[0].parents[names[0].count("/")]
        if self._folder is None:
            raise self._failure or self._hub.missing()
        for name in names:
            check_cached(self._folder / name)
        if any(_lacks_shards(self._folder, name) for name in names):
            raise self._failure or self._hub.missing()
        return self._folder

    def _no_weights(self, names: Iterable[str]) -> CheckpointError:
        if self._listing is None:  # a download that was broken off, or one of other files
            return self._failure or self._hub.missing()
        what = f"the hub's {self.name!r} ({self.commit}) has no weights of a known format"
        if self.is_optimum():
            return CheckpointError(
                f"{what}, only graphs of Optimum: Whisper.load and whisper-opt transcribe run them"
                " as they are; to export an engine, take the model that they were exported from"
            )
        for pattern in _SINGLE_FILES:
            files = sorted(fnmatch.filter(names, pattern))
            if files:
                return CheckpointError(
                    f"{what} for a whole repository, but single files ({', '.join(files[:4])}"
                    f"{', ...' if len(files) > 4 else ''}): fetch one with `hf download {self.name}"
                    f" {files[0]} --revision {self.commit} --local-dir DIR` and pass"
                    f" DIR/{files[0]}"
                )
        expected = ", ".join(name for name, _ in _WEIGHTS)
        return CheckpointError(f"{what}; expected one of {expected}, or graphs of Optimum")


def find(
    name: str,
    revision: str | None = None,
    *,
    local_files_only: bool = False,
    known: str | None = None,
) -> HubModel:
    """Find a model on the hub; or, if the hub cannot be asked, in the client's cache.

    Args:
        name: hub id, e.g. ``openai/whisper-tiny.en``.
        revision: branch, tag or commit; the default branch if None.
        local_files_only: use no network.
        known: the commit that the revision had before, for use without a network.

    Raises:
        BackendUnavailable: huggingface_hub is not installed.
        CheckpointError: there is no such model or revision; or the hub cannot be asked, and neither
            a copy nor the commit is known.
    """
    hub = Hub(name, revision)
    failure = None
    if not local_files_only:
        answer = hub.ask()
        if isinstance(answer, Listing):
            return HubModel(name, answer.commit, hub, answer, None, None)
        failure = answer
    commit = revision if is_commit(revision) else known
    folder = hub.snapshot(commit or revision)
    if folder is not None:
        commit = folder.name
    if commit is None:
        raise failure or hub.missing()
    if failure is not None and (folder or known):
        _log.warning("%s; using commit %s, which is on this machine", failure, commit)
    return HubModel(name, commit, hub, None, folder, failure)


def download_tokenizer(name: str, revision: str | None = None) -> Path:
    """Fetch the configuration and the tokenizer of a model, without its weights.

    Args:
        name: hub id.
        revision: branch, tag or commit; the default branch if None.

    Returns:
        The directory.

    Raises:
        BackendUnavailable: huggingface_hub is not installed.
        CheckpointError: there is no such model, or no network.
    """
    return find(name, revision).tokenizer()


def _sidecars(names: Collection[str]) -> list[str]:
    return [name for name in _SIDECARS if name in names]


def _weights(names: Collection[str]) -> list[str] | None:
    """The weight files to fetch; None if there are none of a known format."""
    for first, others in _WEIGHTS:
        if first in names:
            return [first, *sorted(fnmatch.filter(names, others))]
    return None


def _lacks_shards(folder: Path, name: str) -> bool:
    """Whether ``name`` is an index of shards, and one of them is missing."""
    if not name.endswith(".index.json"):
        return False
    try:
        files = set(parse_json(read_text(folder / name))["weight_map"].values())
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return False  # the loader says what is wrong with it
    return not all((folder / str(file)).is_file() for file in files)
