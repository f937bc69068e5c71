"""The engine directory, which an export writes and the runtime opens.

    manifest.json    format version, dims, precision, dialect, token lists, source, tools, parity,
                     size and sha256 of every other file
    tokenizer.json
    encoder.onnx encoder.data decoder.onnx decoder.data
    encoder.packed.onnx decoder.packed.onnx    (8-bit and 4-bit engines: graphs for the kernels)
    choose.onnx advance.onnx reorder.onnx    (graphs for GPUs; older engines have no advance.onnx)

A directory that Optimum exported is opened too (:mod:`whisper_opt.runtime.optimum.directory`).

Opening an engine checks the manifest and the size of every file; ``verify=True`` also checks the
hashes.

An engine may come from an untrusted source. Its manifest can only name files directly in the
directory. A file may be a symbolic link, as in caches that store files by hash; its target must
have the size (and hash) that the manifest says.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

from whisper_opt.core.arrays import NDArray
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import CheckpointError, EngineError
from whisper_opt.core.json_files import integer, parse_json, plain_name, read_text, string
from whisper_opt.runtime.tensors import TensorEntry, map_tensor, parse_tensors

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "OWN_ATTENTION_VERSION",
    "PACKED",
    "PLAIN",
    "Engine",
    "FileEntry",
    "Manifest",
    "is_engine_directory",
    "read_engine",
    "sha256",
]

FORMAT_VERSION = 6
"""Version of the directory layout, the graphs' signatures and the layout of their weights."""
OLDEST_VERSION = 3
"""The oldest version that can be read. It lacks ``padding``; 8-bit weights are packed from 5 on."""
OWN_ATTENTION_VERSION = 6
"""The first version whose packed decoders have an operator of their own for self-attention."""
MANIFEST = "manifest.json"
ENGINE_FILES = ("tokenizer.json", "encoder.onnx", "encoder.data", "decoder.onnx", "decoder.data")
"""Every file an engine has besides its manifest."""
PLAIN = ("encoder.onnx", "decoder.onnx")
PACKED = ("encoder.packed.onnx", "decoder.packed.onnx")
"""Graphs over the same weights that pass keys and values packed for kernels; both or neither."""

_MAX_SIZES = {"n_mels": 1 << 10, "n_vocab": 1 << 20}
"""Upper limits of dimensions; ``_MAX_OTHER`` for all others. Larger ones would exhaust memory."""
_MAX_OTHER = 1 << 16
_DIALECTS = ("contrib", "standard")


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 (hex) of one engine file."""

    size: int
    sha256: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FileEntry:
        """Parse a manifest entry; raises KeyError, TypeError or ValueError."""
        return cls(integer(values["size"], "size"), string(values["sha256"], "sha256"))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The description of an engine.

    Attributes:
        dims: model dimensions.
        precision: arithmetic of the graphs (``fp32``).
        dialect: operator family (``contrib`` or ``standard``).
        alignment_heads: (decoder layer, head) pairs, or None if the checkpoint has none: the
            graph then has :attr:`ModelDims.default_alignment_heads`.
        suppress_tokens: ids that are never sampled, or None if the checkpoint has none.
        begin_suppress_tokens: ids that are not sampled first, or None if the checkpoint has none.
        source: format, name, dtype and sha256 of the checkpoint files.
        tools: versions of the packages that exported the engine.
        parity: measurements of the verification at export.
        files: every file by name.
        tensors: tensors that the runtime reads itself, by name
            (:mod:`whisper_opt.runtime.head_bounds`).
        padding: lengths in positions of the parts in which padding is compressed
            (:mod:`whisper_opt.runtime.padding`); None if it is not compressed.
        calibration: quantization errors of each group of products on recordings; empty without
            recordings (``export --calibrate``).
        multilingual: whether prompts contain language and task, according to the tokenizer and
            configuration of the checkpoint; None in older engines.
        format_version: version of the layout.
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
        """Whether the model is multilingual; for older engines, from the size of the vocabulary."""
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

    def _repr_html_(self) -> str:
        """The manifest in a notebook: what is not about single files."""
        from whisper_opt.text.html import table_html

        size = sum(entry.size for entry in self.files.values())
        rows = [
            ("source", self.source.get("name")),
            ("precision", self.precision),
            ("dialect", self.dialect),
            ("size", f"{size / 1e6:.0f} MB in {len(self.files)} files"),
            *((name, value) for name, value in self.dims.to_dict().items()),
            *((f"verified: {name}", value) for name, value in self.parity.items()),
        ]
        return table_html(rows)

    @classmethod
    def from_json(cls, content: str, name: str) -> Manifest:
        """Parse ``manifest.json``; messages refer to it as ``name``.

        Raises:
            EngineError: not JSON, a newer format, or a missing or malformed entry.
        """
        try:
            values = parse_json(content)
            version = values["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"{name} is not an engine manifest ({type(error).__name__}: {error});"
                " export the engine again"
            ) from error
        if not isinstance(version, int) or version < 1:
            raise EngineError(f"{name} has format version {version!r}; expected {FORMAT_VERSION}")
        if version > FORMAT_VERSION:
            raise EngineError(
                f"{name} has format version {version}; this whisper-opt reads up to"
                f" {FORMAT_VERSION}: upgrade whisper-opt, or export the engine again with it"
            )
        if version < OLDEST_VERSION:
            raise EngineError(
                f"{name} has format version {version}; this whisper-opt reads {OLDEST_VERSION} to"
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
                f"{name} is malformed ({type(error).__name__}: {error}); export the engine again"
            ) from error

    @classmethod
    def _from_values(cls, values: Mapping[str, Any]) -> Manifest:
        dims, dialect = _dims(values["dims"]), values["dialect"]
        if dialect not in _DIALECTS:
            raise ValueError(f"dialect is {dialect!r:.60}; expected {' or '.join(_DIALECTS)}")
        files = {
            plain_name(name): FileEntry.from_dict(entry) for name, entry in values["files"].items()
        }
        return cls(
            dims=dims,
            precision=string(values["precision"], "precision"),
            dialect=dialect,
            alignment_heads=_heads(values["alignment_heads"]),
            suppress_tokens=_ids(values["suppress_tokens"], "suppress_tokens"),
            begin_suppress_tokens=_ids(values["begin_suppress_tokens"], "begin_suppress_tokens"),
            source=dict(values["source"]),
            tools=dict(values["tools"]),
            parity=dict(values["parity"]),
            files=files,
            tensors=parse_tensors(
                values["tensors"], dims, {name: entry.size for name, entry in files.items()}
            ),
            padding=_parts(values.get("padding"), dims.n_audio_ctx),
            calibration=dict(values.get("calibration", {})),
            multilingual=_flag(values.get("multilingual")),
            format_version=values["format_version"],
        )


def _dims(values: Any) -> ModelDims:
    dims = ModelDims.from_dict(values)
    for name, size in dims.to_dict().items():
        most = _MAX_SIZES.get(name, _MAX_OTHER)
        if size > most:
            raise ValueError(f"{name} is {size}; expected {most} at most")
    return dims


def _heads(values: Any) -> tuple[tuple[int, int], ...] | None:
    if values is None:
        return None
    name = "alignment_heads"
    return tuple((integer(layer, name), integer(head, name)) for layer, head in values)


def _parts(values: Any, n_ctx: int) -> tuple[int, ...] | None:
    parts = _ids(values, "padding")
    if parts is not None and (min(parts, default=0) < 1 or sum(parts) != n_ctx):
        raise ValueError(f"padding: the parts do not add up to {n_ctx} positions")
    return parts


def _flag(value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"multilingual is {value!r}, expected true or false")
    return value


def _ids(values: Any, name: str) -> tuple[int, ...] | None:
    return None if values is None else tuple(integer(value, name) for value in values)


@dataclasses.dataclass(frozen=True)
class Engine:
    """An opened engine directory."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of one of the engine's files."""
        return self.path / name

    def tensor(self, name: str) -> NDArray:
        """A tensor of the manifest, as :func:`map_tensor` returns it."""
        return map_tensor(self.path, self.manifest.tensors[name])

    def tokenizer_json(self) -> str:
        """The text of ``tokenizer.json``.

        Raises:
            EngineError: it cannot be read.
        """
        path = self.file("tokenizer.json")
        try:
            return path.read_bytes().decode("utf-8")  # half the time of read_text
        except (OSError, UnicodeDecodeError) as error:
            raise EngineError(
                f"cannot read engine file {path}: {error}; copy or export the engine again"
            ) from error


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks of 1 MiB."""
    import hashlib  # loads OpenSSL; not at the top, because loading an engine does not need it

    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def is_engine_directory(path: Union[str, Path]) -> bool:
    """Whether :func:`read_engine` is to open this: an engine, or a directory of Optimum."""
    from whisper_opt.runtime.optimum.directory import is_optimum_directory

    return (Path(path) / MANIFEST).is_file() or is_optimum_directory(Path(path))


def read_engine(path: Union[str, Path], *, verify: bool = False) -> Engine:
    """Open an engine directory, or one that Optimum exported.

    Args:
        path: the directory.
        verify: also compare the sha256 of every file with the manifest (reads all files).

    Returns:
        The engine; an :class:`whisper_opt.runtime.optimum.directory.OptimumEngine` for a directory
        of Optimum.

    Raises:
        EngineError: no engine there, a newer format, or a file that is missing or has another size
            or (with ``verify``) another hash; or ``verify`` for a directory of Optimum, which has
            no hashes.
    """
    path = _utf8(Path(path))
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        return _read_other(path, verify=verify)
    try:
        content = read_text(manifest_path)
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot read {manifest_path}: {error}") from error
    manifest = Manifest.from_json(content, str(manifest_path))
    expected = ENGINE_FILES + (PACKED if any(name in manifest.files for name in PACKED) else ())
    lacking = [name for name in expected if name not in manifest.files]
    if lacking:
        raise EngineError(f"{manifest_path} does not list {lacking[0]}; export the engine again")
    for name, entry in manifest.files.items():
        _check_file(path / name, entry, verify=verify)
    return Engine(path, manifest)


def _read_other(path: Path, *, verify: bool) -> Engine:
    """Open a directory without a manifest: one of Optimum, or none that can be opened."""
    from whisper_opt.runtime.optimum.directory import is_optimum_directory, read_optimum

    if not is_optimum_directory(path):
        raise EngineError(_no_engine(path))
    if verify:
        raise EngineError(
            f"{path} was exported by Optimum, which lists no hashes, so its files cannot be"
            " verified; leave verify out, or export the checkpoint with whisper-opt export"
        )
    return read_optimum(path)


def _utf8(path: Path) -> Path:
    """The path, if it is valid UTF-8; ONNX Runtime cannot open others."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("ascii", "backslashreplace")
        raise EngineError(
            f"the path of the engine is not valid UTF-8, which ONNX Runtime requires:"
            f" {shown}; rename the directory"
        ) from None
    return path


def _no_engine(path: Path) -> str:
    if not path.exists():
        return f"no engine at {path}; create one with: whisper-opt export SOURCE {path}"
    if not path.is_dir():
        return f"{path} is a file; expected an engine directory holding {MANIFEST}"
    return f"{path} holds no {MANIFEST}, so it is not an engine; see whisper-opt export --help"


def _check_file(path: Path, entry: FileEntry, *, verify: bool) -> None:
    try:
        _compare(path, entry, verify=verify)
    except OSError as error:
        raise EngineError(
            f"cannot read engine file {path}: {error.strerror}; copy or export the engine again"
        ) from error


def _compare(path: Path, entry: FileEntry, *, verify: bool) -> None:
    if not path.is_file():
        raise EngineError(f"engine file {path} is missing; export the engine again")
    size = path.stat().st_size
    if size != entry.size:
        raise EngineError(
            f"engine file {path} has {size} bytes; its manifest says {entry.size}: it is damaged"
            " or incompletely copied; copy or export it again"
        )
    if verify and (found := sha256(path)) != entry.sha256:
        raise EngineError(
            f"engine file {path} has sha256 {found[:16]}...; its manifest says"
            f" {entry.sha256[:16]}...: it was damaged or changed; copy or export it again"
        )
