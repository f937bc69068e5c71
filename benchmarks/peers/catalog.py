"""The systems compared, their environments and weight formats."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

__all__ = ["ENVIRONMENTS", "PEERS", "Peer", "environments", "python_of"]

HERE = Path(__file__).resolve().parent
BENCHMARKS = HERE.parent

ENVIRONMENTS = tuple(sorted(path.stem for path in (HERE / "requirements").glob("*.txt")))
"""Names of the environments; each has a file of pinned requirements."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """One row of the table.

    Attributes:
        name: name in the table.
        environment: environment that runs it; "": that of this library.
        module: module of ``benchmarks/peers``.
        form: the weight format, one of ``convert.FORMS``.
        precision: its arithmetic.
        beam: whether it has beam search.
        batch: whether it decodes windows of a recording together.
        longest: maximum seconds of audio per call; None: no limit.
        native: whether it needs a build of whisper.cpp.
    """

    name: str
    environment: str
    module: str
    form: str
    precision: str
    beam: bool = True
    batch: bool = False
    longest: float | None = None
    native: bool = False


PEERS = (
    *(
        Peer(
            f"faster-whisper {precision}",
            "faster-whisper",
            "run_faster_whisper",
            "ctranslate2",
            precision,
            batch=True,
        )
        for precision in ("float32", "int8")
    ),
    *(
        Peer(
            f"whisper.cpp {kind}, native",
            "whisper-cpp",
            "run_whisper_cli",
            f"ggml-{kind}.bin",
            kind,
            native=True,
        )
        for kind in ("f16", "q8_0", "q5_0")
    ),
    *(
        Peer(
            f"whisper.cpp {kind}, wheel",
            "whisper-cpp",
            "run_whisper_cpp",
            f"ggml-{kind}.bin",
            kind,
        )
        for kind in ("f16", "q8_0", "q5_0")
    ),
    Peer("openai-whisper", "openai-whisper", "run_openai_whisper", "openai.pt", "float32"),
    Peer("transformers", "transformers", "run_transformers", "huggingface", "float32"),
    Peer("Optimum", "optimum", "run_optimum", "optimum", "float32"),
    *(
        Peer(
            f"sherpa-onnx {precision}",
            "sherpa-onnx",
            "run_sherpa_onnx",
            "sherpa",
            precision,
            beam=False,
            longest=29.0,
        )
        for precision in ("float32", "int8")
    ),
    Peer("onnx-asr", "onnx-asr", "run_onnx_asr", "optimum", "float32", beam=False, longest=30.0),
)


def environments() -> Path:
    """The folder of the environments: ``WHISPER_OPT_PEERS``, or ``build/peers/environments``."""
    default = BENCHMARKS.parent / "build" / "peers" / "environments"
    return Path(os.environ.get("WHISPER_OPT_PEERS", default))


def python_of(environment: str) -> str:
    """The Python of an environment, which may not exist."""
    return str(environments() / environment / "bin" / "python")
