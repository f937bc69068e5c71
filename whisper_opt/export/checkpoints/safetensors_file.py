"""Index of a ``.safetensors`` file.

Layout (huggingface/safetensors): length of the header as u64, the header as JSON, then the data to
which the header's offsets refer. Only types that convert to float32 without loss are read.
"""

from __future__ import annotations

import json
import math
import reprlib
from pathlib import Path
from typing import Any

from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.blob import ITEM_BYTES, Blob

__all__ = ["read_safetensors"]

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MAX_HEADER_BYTES = 1 << 24  # the largest model has 0.2 MB; parsed JSON takes 24 times as much
_MAX_AXES = 8


def read_safetensors(path: Path) -> dict[str, Blob]:
    """Unread tensors of a file, by name.

    Raises:
        CheckpointError: the file is truncated, its header is not valid, tensors overlap or lie
            outside the file, or a tensor has an unsupported type.
    """
    header, start, size = _read_header(path)
    blobs = {
        name: _blob(path, name, entry, start)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    end = start
    for name, blob in sorted(blobs.items(), key=lambda item: (item[1].offset, item[1].n_items)):
        if blob.offset != end:
            raise _damaged(path, f"has a gap or an overlap before tensor {name!r:.80}")
        end = blob.offset + blob.n_items * ITEM_BYTES[blob.dtype]
    if end != size:
        raise _damaged(path, f"has {size} bytes, its header describes {end}")
    return blobs


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path.name} {what}; the file is incomplete or damaged: fetch it again")


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, the offset of the data after it, and the size of the file."""
    try:
        with path.open("rb") as file:
            n_bytes = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if size < 8 or not 0 < n_bytes <= min(size - 8, _MAX_HEADER_BYTES):
                raise _damaged(path, f"has {size} bytes and declares a header of {n_bytes}")
            raw = file.read(n_bytes)
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {error.strerror}") from error
    try:
        header = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError, MemoryError) as error:
        raise _damaged(path, "has a header that is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "has a header that is not a JSON object")
    return header, 8 + n_bytes, size


def _blob(path: Path, name: str, entry: Any, start: int) -> Blob:
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(
            path, f"describes tensor {name!r:.80} without dtype, shape or offsets"
        ) from error
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise CheckpointError(
            f"{path.name} stores {name!r:.80} as {reprlib.repr(kind)}; expected"
            f" {', '.join(_DTYPES)}: quantized weights cannot be exported exactly, load the"
            " original checkpoint"
        )
    dtype = _DTYPES[kind]
    if not isinstance(shape, list) or len(shape) > _MAX_AXES:
        raise _damaged(path, f"gives tensor {name!r:.80} a shape or offsets that are not integers")
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (begin, end, *shape)):
        raise _damaged(path, f"gives tensor {name!r:.80} a shape or offsets that are not integers")
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise _damaged(path, f"gives tensor {name!r:.80} {end - begin} bytes for {kind} {shape}")
    return Blob(path, start + begin, dtype, tuple(shape))
