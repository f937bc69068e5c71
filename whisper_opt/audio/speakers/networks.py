"""The networks of a directory that ``whisper-opt export-speakers`` wrote."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import threading
from pathlib import Path
from typing import Any, Union

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.cpu import cpu_info
from whisper_opt.core.errors import BackendUnavailable, EngineError
from whisper_opt.core.json_files import integer, parse_json, plain_name, read_text, string
from whisper_opt.core.remedies import install_hint

__all__ = ["FORMAT_VERSION", "GRAPHS", "KIND", "MANIFEST", "SpeakerNetworks", "open_speakers"]

KIND = "speakers"
"""Of a manifest, which tells these directories from those of Whisper models."""
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GRAPHS = ("segmentation.onnx", "embedding.onnx")


class SpeakerNetworks:
    """Both networks; they are loaded at their first use, and may be used from several threads."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Created by :func:`open_speakers`; ``threads`` of the CPU, default: all cores."""
        self.path = path
        self._threads = threads or cpu_info().cores
        self._sessions: dict[str, Any] = {}
        self._pool: Any = None
        self._loading = threading.Lock()

    def segment(self, samples: F32) -> F32:
        """Log-probabilities of sets of speakers, F32 [B, frames, 7], of windows F32 [B, n]."""
        return self._run("segmentation.onnx", "samples", samples)

    def embed(self, features: F32) -> F32:
        """Voices of unit length, F32 [B, n], of filter banks F32 [B, T, 80]; T is at least 4."""
        centred = features - features.mean(axis=1, keepdims=True)
        found = self._run("embedding.onnx", "features", centred)
        length = np.linalg.norm(found, axis=1, keepdims=True)
        unit: F32 = found / np.maximum(length, np.float32(1e-12))
        return unit

    def _run(self, name: str, feed: str, values: F32) -> F32:
        """Rows of a batch are divided between threads, each of which runs its part alone."""
        session = self._session(name)

        def run(part: F32) -> F32:
            found: F32 = session.run(None, {feed: np.ascontiguousarray(part)})[0]
            return found

        n_parts = min(self._threads, len(values))
        if n_parts < 2:
            return run(values)
        return np.concatenate(list(self._workers().map(run, np.array_split(values, n_parts))))

    def _workers(self) -> Any:
        with self._loading:
            if self._pool is None:
                from concurrent.futures import ThreadPoolExecutor  # takes 20 ms

                self._pool = ThreadPoolExecutor(self._threads, "speakers")
            return self._pool

    def _session(self, name: str) -> Any:
        with self._loading:
            if name not in self._sessions:
                self._sessions[name] = self._load(name)
            return self._sessions[name]

    def _load(self, name: str) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendUnavailable(
                f"ONNX Runtime is not installed, and diarize needs it; {install_hint('cpu')}"
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # it would keep the memory of the largest batch
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return onnxruntime.InferenceSession(
                str(self.path / name), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises classes of its own
            raise EngineError(
                f"{self.path / name} cannot be loaded ({str(error)[:200]}); write the directory"
                " again with whisper-opt export-speakers"
            ) from error


def open_speakers(
    path: Union[str, os.PathLike[str]], *, threads: int | None = None, verify: bool = False
) -> SpeakerNetworks:
    """Open a directory that ``whisper-opt export-speakers`` wrote.

    Args:
        path: the directory.
        threads: CPU threads; default: all cores.
        verify: also compare the sha256 of every file with the manifest.

    Raises:
        EngineError: it is no such directory, or is damaged.
        BackendUnavailable: SciPy is missing.
    """
    _require_scipy()
    folder = Path(path)
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise EngineError(
            f"{folder} holds no speaker networks ({MANIFEST} is missing); write them with"
            " whisper-opt export-speakers, and give the directory as speakers"
        )
    try:
        files = _files(parse_json(read_text(manifest)))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{manifest}: {error}; write the directory again with whisper-opt export-speakers"
        ) from error
    for name, (size, digest) in files.items():
        _check_file(folder / name, size, digest if verify else None)
    return SpeakerNetworks(folder, threads)


def _files(entry: Any) -> dict[str, tuple[int, str]]:
    """Size and sha256 of every file; raises ValueError."""
    if not isinstance(entry, dict) or entry.get("kind") != KIND:
        raise ValueError(f"this is not the manifest of speaker networks (kind is no {KIND!r})")
    if entry.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"format_version is {entry.get('format_version')!r}; this whisper-opt reads"
            f" {FORMAT_VERSION}"
        )
    files = entry.get("files")
    if not isinstance(files, dict) or not set(GRAPHS) <= set(files):
        raise ValueError(f"it does not list {' and '.join(GRAPHS)}")
    found = {}
    for name, about in files.items():
        about = about if isinstance(about, dict) else {}
        size = integer(about.get("size"), f"size of {name}")
        found[plain_name(name)] = size, string(about.get("sha256"), f"sha256 of {name}")
    return found


def _check_file(path: Path, size: int, digest: str | None) -> None:
    try:
        found = path.stat().st_size
        intact = digest is None or hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except OSError as error:
        raise EngineError(
            f"{path} cannot be read ({error.strerror}); write the directory again with whisper-opt"
            " export-speakers"
        ) from error
    if found != size or not intact:
        raise EngineError(
            f"{path} is damaged: its size ({found} bytes, expected {size}) or sha256 is not that of"
            " the manifest; write the directory again with whisper-opt export-speakers"
        )


def _require_scipy() -> None:
    if importlib.util.find_spec("scipy") is None:
        raise BackendUnavailable(
            f"SciPy is not installed, and diarize needs it; {install_hint('speakers')}"
        )
