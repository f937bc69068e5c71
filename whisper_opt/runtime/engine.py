"""The engine directory: what an export leaves and what the runtime opens.

    manifest.json    format version, dims, precision, dialect, token lists, source, tools, parity,
                     size and sha256 of every other file
    tokenizer.json
    encoder.onnx encoder.data decoder.onnx decoder.data
    encoder.packed.onnx decoder.packed.onnx    (engines of 8 and 4 bits: the same for kernels)
    choose.onnx advance.onnx reorder.onnx    (what a GPU runs; older engines lack the second)

Reading one checks the manifest and every file's size; ``verify=True`` also checks the hashes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

import numpy as np

from whisper_opt.core.arrays import NDArray
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import CheckpointError, EngineError

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "PACKED",
    "PLAIN",
    "Engine",
    "FileEntry",
    "Manifest",
    "TensorEntry",
    "map_tensor",
    "read_engine",
    "sha256",
]

FORMAT_VERSION = 4
"""Version of the directory layout and the graphs' signatures."""
OLDEST_VERSION = 3
"""The oldest that is read: it knew no ``padding``, and nothing else differs."""
MANIFEST = "manifest.json"
ENGINE_FILES = ("tokenizer.json", "encoder.onnx", "encoder.data", "decoder.onnx", "decoder.data")
"""Every file an engine has besides its manifest."""
PLAIN = ("encoder.onnx", "decoder.onnx")
PACKED = ("encoder.packed.onnx", "decoder.packed.onnx")
"""Graphs over the same weights that hand keys and values over packed for kernels; both or none."""


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 (hex) of one engine file."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies that the runtime reads itself: little-endian, in row-major order."""

    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TensorEntry:
        """Parse a manifest entry; raises KeyError, TypeError or ValueError."""
        shape = tuple(int(size) for size in values["shape"])
        dtype = np.dtype(str(values["dtype"])).name
        return cls(str(values["file"]), int(values["offset"]), shape, dtype)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What an engine says about itself.

    Attributes:
        dims: model dimensions.
        precision: arithmetic of the graphs (``fp32``).
        dialect: operator family (``contrib`` or ``standard``).
        alignment_heads: (decoder layer, head) pairs, or None when the checkpoint did not say:
            the graph then has :attr:`ModelDims.default_alignment_heads`.
        suppress_tokens: ids never sampled, or None when the checkpoint did not say.
        begin_suppress_tokens: ids not sampled first, or None when the checkpoint did not say.
        source: format, name, dtype and sha256 of the checkpoint files.
        tools: versions of what made the engine.
        parity: what verification measured at export.
        files: every file by name.
        tensors: what the runtime reads itself, by name (:mod:`whisper_opt.runtime.head_bounds`).
        padding: lengths of the parts in which padding is heard (:mod:`whisper_opt.runtime.padding`), in
            positions; None where all of it is.
        calibration: what rounding each group of products cost on recordings; empty where none were
            given (``export --calibrate``).
        multilingual: whether prompts name language and task, as the checkpoint's tokenizer and
            configuration say; None in older engines.
        format_version: layout version.
    """

    dims: ModelDims
    precision: str
    dialect: str
    alignment_heads: tuple[tuple[int, int], ...] | None
    suppress_tokens: tuple[int, ...] | None
    begin_suppress_tokens: tuple[int, ...] | None
    source: Mapping[str, Any]
    tools: Mapping[str, str]
    parity: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    tensors: Mapping[str, TensorEntry] = dataclasses.field(default_factory=dict)
    padding: tuple[int, ...] | None = None
    calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    multilingual: bool | None = None
    format_version: int = FORMAT_VERSION

    @property
    def is_multilingual(self) -> bool:
        """Whether the model is; older engines tell it by the size of their vocabulary alone."""
        return self.dims.is_multilingual if self.multilingual is None else self.multilingual

    def to_json(self) -> str:
        """The text of ``manifest.json``; short lists stay on one line."""
        values = {**dataclasses.asdict(self), "dims": self.dims.to_dict()}
        for name in ("calibration", "padding"):
            if not values[name]:
                del values[name]
        if self.multilingual is None:
            del values["multilingual"]
        order = ["format_version", *(name for name in values if name != "format_version")]
        lines = []
        for name in order:
            flat = isinstance(values[name], (list, tuple))
            text = json.dumps(values[name], indent=None if flat else 2)
            lines.append(f"  {json.dumps(name)}: " + text.replace("\n", "\n  "))
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Parse ``manifest.json``; ``where`` names it in messages.

        Raises:
            EngineError: not JSON, a newer format, or a missing or malformed entry.
        """
        try:
            values = json.loads(text)
            version = values["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"{where} is not an engine manifest ({type(error).__name__}: {error});"
                " export the engine again"
            ) from error
        if not isinstance(version, int) or version < 1:
            raise EngineError(f"{where} has format version {version!r}; expected {FORMAT_VERSION}")
        if version > FORMAT_VERSION:
            raise EngineError(
                f"{where} has format version {version}; this whisper-opt reads up to"
                f" {FORMAT_VERSION}: upgrade whisper-opt, or export the engine again with it"
            )
        if version < OLDEST_VERSION:
            raise EngineError(
                f"{where} has format version {version}; this whisper-opt reads {OLDEST_VERSION} to"
                f" {FORMAT_VERSION}: export the engine again"
            )
        try:
            return cls._from_values(values)
        except (
            CheckpointError,
            AttributeError,
            KeyError,
            OverflowError,
            TypeError,
            ValueError,
        ) as error:
            raise EngineError(
                f"{where} is malformed ({type(error).__name__}: {error}); export the engine again"
            ) from error

    @classmethod
    def _from_values(cls, values: Mapping[str, Any]) -> Manifest:
        heads = values["alignment_heads"]
        return cls(
            dims=ModelDims.from_dict(values["dims"]),
            precision=str(values["precision"]),
            dialect=str(values["dialect"]),
            alignment_heads=None if heads is None else tuple((int(a), int(b)) for a, b in heads),
            suppress_tokens=_ids(values["suppress_tokens"]),
            begin_suppress_tokens=_ids(values["begin_suppress_tokens"]),
            source=dict(values["source"]),
            tools=dict(values["tools"]),
            parity=dict(values["parity"]),
            files={
                name: FileEntry(int(entry["size"]), str(entry["sha256"]))
                for name, entry in values["files"].items()
            },
            tensors={
                name: TensorEntry.from_dict(entry) for name, entry in values["tensors"].items()
            },
            padding=_parts(values.get("padding"), int(values["dims"]["n_audio_ctx"])),
            calibration=dict(values.get("calibration", {})),
            multilingual=_flag(values.get("multilingual")),
            format_version=int(values["format_version"]),
        )


def _parts(values: Any, n_ctx: int) -> tuple[int, ...] | None:
    parts = _ids(values)
    if parts is not None and (min(parts, default=0) < 1 or sum(parts) != n_ctx):
        raise ValueError(f"padding: parts that do not make {n_ctx} positions")
    return parts


def _flag(value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"multilingual is {value!r}, expected true or false")
    return value


def _ids(values: Any) -> tuple[int, ...] | None:
    return None if values is None else tuple(int(value) for value in values)


@dataclasses.dataclass(frozen=True)
class Engine:
    """An opened engine directory."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of one of the engine's files."""
        return self.path / name

    def tensor(self, name: str) -> NDArray:
        """A tensor of the manifest, as :func:`map_tensor`."""
        return map_tensor(self.path, self.manifest.tensors[name])

    def tokenizer_json(self) -> str:
        """The text of ``tokenizer.json``.

        Raises:
            EngineError: it cannot be read.
        """
        path = self.file("tokenizer.json")
        try:
            return path.read_bytes().decode("utf-8")  # half as long as read_text
        except (OSError, UnicodeDecodeError) as error:
            raise EngineError(
                f"cannot read engine file {path}: {error}; copy or export the engine again"
            ) from error


def map_tensor(folder: Path, entry: TensorEntry) -> NDArray:
    """A tensor in an engine file, mapped read-only: pages come from disk as they are used.

    Raises:
        EngineError: it is not there.
    """
    try:
        return np.memmap(
            folder / entry.file,
            np.dtype(entry.dtype).newbyteorder("<"),
            mode="r",
            offset=entry.offset,
            shape=entry.shape,
        ).view(np.ndarray)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"cannot read a tensor at {entry.offset} of {folder / entry.file}: {error};"
            " export the engine again"
        ) from error


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks of 1 MiB."""
    import hashlib  # loads OpenSSL, which nothing else here needs

    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def read_engine(path: Union[str, Path], *, verify: bool = False) -> Engine:
    """Open an engine directory.

    Args:
        path: the directory.
        verify: also compare the sha256 of every file with the manifest (reads them whole).

    Raises:
        EngineError: no engine there, a newer format, a file that is missing, has another size, or
            (with ``verify``) another hash.
    """
    path = Path(path)
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise EngineError(_no_engine(path))
    try:
        text = manifest_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"cannot read {manifest_path}: {error}") from error
    manifest = Manifest.from_json(text, str(manifest_path))
    expected = ENGINE_FILES + (PACKED if any(name in manifest.files for name in PACKED) else ())
    lacking = [name for name in expected if name not in manifest.files]
    if lacking:
        raise EngineError(f"{manifest_path} does not list {lacking[0]}; export the engine again")
    for name, entry in manifest.files.items():
        _check_file(path / name, entry, verify=verify)
    return Engine(path, manifest)


def _no_engine(path: Path) -> str:
    if not path.exists():
        return f"no engine at {path}; make one with: whisper-opt export SOURCE {path}"
    if not path.is_dir():
        return f"{path} is a file; expected an engine directory holding {MANIFEST}"
    return f"{path} holds no {MANIFEST}, so it is not an engine; see whisper-opt export --help"


def _check_file(path: Path, entry: FileEntry, *, verify: bool) -> None:
    if not path.is_file():
        raise EngineError(f"engine file {path} is missing; export the engine again")
    size = path.stat().st_size
    if size != entry.size:
        raise EngineError(
            f"engine file {path} has {size} bytes; its manifest says {entry.size}: it is damaged"
            " or was copied in part; copy or export it again"
        )
    if verify and (found := sha256(path)) != entry.sha256:
        raise EngineError(
            f"engine file {path} has sha256 {found[:16]}...; its manifest says"
            f" {entry.sha256[:16]}...: it was damaged or changed; copy or export it again"
        )
