"""Compare the text of engines of lower precision with that of fp32, clip by clip.

    pip install -e '.[cpu,export]'
    python scripts/get_model.py tiny.en base
    python benchmarks/precision.py                 # fp16; or: --models tiny.en --clips 20

Greedy, with timestamps, no fallback; fp32 is the stored goldens (openai-whisper's tokens, which
fp32 engines equal on every clip). Variants:

* `standard`, `contrib`: the fp16 engines in ONNX Runtime on the CPU, which computes most operators
  in float32 and so omits much of the rounding.
* `rounded`: the standard engine with every value rounded to float16, as a GPU stores it
  (benchmarks/rounded.py).

For a clip that differs, the margin in nats of the first different fp32 decision is reported. Logits
are compared along the golden tokens of the first window. Results are stored in build/benchmarks, so
that a stopped run can continue.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    SAMPLE_RATE,
    Clip,
    Pieces,
    Verdict,
    arguments,
    clip_pcm,
    clips,
    digest,
    finish,
    table,
)
from rounded import rounded_engine

from tests.support.closeness import closeness
from tests.support.golden import golden, options
from whisper_opt import TranscribeOptions, Whisper
from whisper_opt.audio.features import log_mel
from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.export import export
from whisper_opt.runtime.engine import Engine, read_engine
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.text.vocabulary import Vocab

CONFIG = "ts"
WINDOW_FRAMES = 3000
EQUAL = 0.98
NEAR_TIE = 0.2
"""Margin in nats below which fp16 may decide differently; the largest one is in the report."""
VARIANTS = ("standard", "contrib", "rounded")
FIRST = ("read", "speech", "spontaneous", "telephone")
"""Kinds of recordings that are processed first."""

Figures = dict[str, Any]


class Model:
    """The engines of one checkpoint, exported on first use."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name = name
        self._args = args

    @functools.cache  # noqa: B019  # lives as long as the run
    def engine(self, variant: str) -> Engine:
        target: Path = self._args.engines / f"{self.name}-{variant}"
        dialect, _, precision = variant.partition("-")
        if dialect == "rounded":
            return rounded_engine(self.engine("standard-fp16"), target)
        if not (target / "manifest.json").is_file():
            source = self._args.models_dir / self.name
            return export(source, target, precision=precision, dialect=dialect)
        return read_engine(target)

    @functools.cache  # noqa: B019
    def whisper(self, variant: str) -> Whisper:
        return Whisper.load(self.engine(variant).path, device="cpu", threads=self._args.threads)

    @functools.cache  # noqa: B019
    def backend(self, variant: str) -> OrtBackend:
        return OrtBackend(self.engine(variant), threads=self._args.threads)


def tokens_of(model: Model, variant: str, clip: Clip) -> Figures:
    """Whether the tokens of a clip equal fp32, and if not, the margin of the decision."""
    chosen = TranscribeOptions(**options(CONFIG), vad="off")
    found = model.whisper(variant).transcribe(clip_pcm(clip.id), options=chosen)
    want = golden(model.name, CONFIG)[clip.id]
    ours = [list(segment.tokens) for segment in found]
    theirs = [segment["tokens"] for segment in want["segments"]]
    if ours == theirs:
        return {"equal": True, "n_tokens": sum(map(len, theirs))}
    margin = closeness(CONFIG, want, found)
    return {
        "equal": False,
        "n_tokens": sum(map(len, theirs)),
        "margin": None if margin == float("inf") else round(margin, 5),
        "text": found.text,
        "fp32_text": want["text"],
    }


def scores_of(model: Model, variant: str, clip: Clip) -> Figures:
    """Errors of one window's keys and values and of its logits along the golden tokens."""
    want = golden(model.name, CONFIG)[clip.id]
    engine = model.engine("standard-fp32")
    vocab = Vocab(engine.tokenizer_json(), engine.manifest.dims)
    sot = vocab.start(want["language"], "transcribe", timestamps=True)
    written = want["windows"][0]["tokens"] if want["windows"] else []
    tokens = np.array([[*sot, *written]], np.int64)[:, : engine.manifest.dims.n_text_ctx]
    mel = log_mel(clip_pcm(clip.id), model.backend("standard-fp32").dims.n_mels)
    frames = mel.window(0, WINDOW_FRAMES)[None]
    results = [_forced(model.backend(name), frames, tokens) for name in ("standard-fp32", variant)]
    (cross, scores), (other_cross, other_scores) = results
    difference = other_scores - scores
    top = np.sort(scores, axis=-1)[:, -2:]
    changed = scores.argmax(-1) != other_scores.argmax(-1)
    gaps = (top[:, 1] - top[:, 0])[changed]
    return {
        "n": int(tokens.shape[1]),
        "cross_error": max(_relative(a, b) for a, b in zip(cross, other_cross)),
        "scores_error": _relative(scores, other_scores),
        "scores_rms_error": float(np.sqrt(np.mean(difference**2))),
        "scores_largest_error": float(np.abs(difference).max()),
        "scores_largest": float(np.abs(scores).max()),
        "top1_changed": int(changed.sum()),
        "top1_largest_gap_changed": float(gaps.max(initial=0.0)),
    }


def _forced(backend: OrtBackend, mel: F32, tokens: NDArray) -> tuple[list[NDArray], F32]:
    encoded = backend.encode(mel)
    session = backend.open(encoded)
    n = tokens.shape[1]
    scores = session.extend(tokens, np.array([n]), np.arange(n - 1)[None]).numpy()[0]
    session.close()
    return list(encoded.cross), scores


def _relative(exact: NDArray, found: NDArray) -> float:
    """Root mean square error as a share of the root mean square."""
    difference = found.astype(np.float64) - exact
    return float(np.sqrt(np.mean(difference**2) / np.mean(np.square(exact, dtype=np.float64))))


def summary(name: str, variant: str, tokens: list[Figures], scores: list[Figures]) -> Figures:
    """One line of the table."""
    n = sum(entry["n"] for entry in scores)
    return {
        "model": name,
        "variant": variant,
        "clips": len(tokens),
        "equal": sum(entry["equal"] for entry in tokens),
        "positions": n,
        "cross_error": max(entry["cross_error"] for entry in scores),
        "scores_error": max(entry["scores_error"] for entry in scores),
        "scores_rms_error": float(
            np.sqrt(sum(entry["n"] * entry["scores_rms_error"] ** 2 for entry in scores) / n)
        ),
        "scores_largest_error": max(entry["scores_largest_error"] for entry in scores),
        "top1_agreement": 1 - sum(entry["top1_changed"] for entry in scores) / n,
        "top1_largest_gap_changed": max(entry["top1_largest_gap_changed"] for entry in scores),
    }


def _order(clip: Clip) -> tuple[bool, float]:
    return clip.kind not in FIRST, clip.duration_s


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--precision", default="fp16", choices=("fp16",))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--clips", type=int, help="maximum number of clips per model")
    args = parser.parse_args()
    pieces = Pieces(args.pieces / f"precision-{args.precision}.jsonl", args.force)
    lines, differing = [], []
    for variant in args.variants:
        for name in args.models:
            model = Model(name, args)
            label = f"{variant}-{args.precision}"
            engine = model.engine(label)
            stems = ("encoder", "decoder")
            files = [engine.file(f"{stem}.{end}") for stem in stems for end in ("onnx", "data")]
            key = (label, name, digest(files))
            sounds = sorted((clip for clip in clips(name) if clip.duration_s > 0), key=_order)
            sounds = sounds[: 3 if args.quick else args.clips]
            tokens, scores = [], []
            for clip in sounds:
                made = pieces.get(
                    (*key, clip.id, "tokens"), functools.partial(tokens_of, model, label, clip)
                )
                tokens.append(made)
                if not made["equal"]:
                    differing.append({"model": name, "variant": variant, "clip": clip.id, **made})
                if len(clip_pcm(clip.id)) >= SAMPLE_RATE // 2:
                    make = functools.partial(scores_of, model, label, clip)
                    scores.append(pieces.get((*key, clip.id, "scores"), make))
            lines.append(summary(name, variant, tokens, scores))
    return finish(
        f"precision-{args.precision}",
        args,
        {"config": CONFIG, "results": lines, "differing": differing},
        {f"{args.precision} against fp32": _table(lines), "clips that differ": _why(differing)},
        [_verdict(lines, differing)],
    )


def _table(lines: list[Figures]) -> str:
    header = ("", "clips equal", "keys and values", "scores", "top-1", "largest gap changed")
    return table(
        header,
        [
            (
                f"{line['model']} {line['variant']}",
                f"{line['equal']} of {line['clips']}",
                f"{line['cross_error']:.2%}",
                f"{line['scores_error']:.2%}",
                f"{line['top1_agreement']:.3%}",
                f"{line['top1_largest_gap_changed']:.3f}",
            )
            for line in lines
        ],
    )


def _why(differing: list[Figures]) -> str:
    rows = [(d["model"], d["variant"], d["clip"], d["margin"]) for d in differing]
    return table(("model", "variant", "clip", "fp32 margin (nats)"), rows)


def _verdict(lines: list[Figures], differing: list[Figures]) -> Verdict:
    shares = {f"{line['model']} {line['variant']}": line["equal"] / line["clips"] for line in lines}
    margins = [d["margin"] if d["margin"] is not None else float("inf") for d in differing]
    enough = all(share >= EQUAL for share in shares.values())
    return Verdict(
        bar=f"tokens of {EQUAL:.0%} of the clips equal, the rest after margins below {NEAR_TIE}",
        passed=enough and all(margin < NEAR_TIE for margin in margins),
        figures=", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        + f"; largest margin {max(margins, default=0.0):.4f}",
    )


if __name__ == "__main__":
    sys.exit(main())
