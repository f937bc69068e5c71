"""Make tests/data/golden: openai-whisper's transcripts of every speech clip.

The reference runs in its own environment, which nothing else in the project needs:

    python3.11 -m venv reference
    reference/bin/pip install torch==2.13.0 openai-whisper==20250625 soundfile soxr av
    PYTHONPATH=. reference/bin/python tools/goldens/make_golden.py --pcm
    PYTHONPATH=. reference/bin/python tools/goldens/make_golden.py \
        --model tiny.en=TINY_EN_DIR --model base=BASE_DIR

A model directory is a CTranslate2 checkpoint; its weights are loaded into openai-whisper's own
model and run in fp32 on two CPU threads. ``whisper.transcribe`` is called unchanged, with the
options of ``tests/support/golden.py``. Windows, seek positions and the margin of every decision are
recorded by wrapping the functions that it calls.

Each (model, configuration) pair is one file. Every clip is stored in ``--parts`` immediately, so
that an interrupted run can continue. ``--finish`` writes the file of the clips that exist; its
header names the ``missing`` ones, and a later run adds them. A complete file stays unchanged unless
``--force`` is given or ``--clips`` names clips to redo.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib
import json
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import soundfile

from tests.support import golden
from whisper_opt.core.arrays import NDArray
from whisper_opt.core.dims import SAMPLE_RATE

log = logging.getLogger("make_golden")

FORMAT = 2
"""Since 2, windows have the fields of ``golden.Ranking`` and ``golden.Window``."""
LOSSLESS = ("pcm_", "flac")
"""Prefixes of the names of codecs that every decoder decodes to the same samples."""
EXCLUDED = {
    "edge-empty": "no samples: openai-whisper returns an empty transcript, this library refuses it"
}
ALL_CONFIGS = (*golden.CONFIGS, *golden.SEARCHES)
N_LANGUAGES = 3
PARTS = Path("build/golden")
PACKAGES = ("openai-whisper", "torch", "numpy", "tiktoken", "soundfile", "soxr")


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# ---------------------------------------------------------------- samples


def decode_with_pyav(path: Path) -> tuple[NDArray, int]:
    """Samples float64 [n, n_channels] and rate of a file that libsndfile cannot read."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
        frames = [*container.decode(stream), None]
        parts = [part.to_ndarray() for frame in frames for part in resampler.resample(frame)]
        return np.concatenate(parts, axis=1).T.astype(np.float64), int(stream.rate)


def make_pcm(out: Path) -> None:
    """Decode every lossy clip to 16 kHz mono FLAC and record the digest of every clip's samples."""
    index: dict[str, Any] = {}
    out.mkdir(parents=True, exist_ok=True)
    for clip in golden.clips():
        if clip.path.suffix in (".m4a", ".webm"):
            audio, rate = decode_with_pyav(clip.path)
        else:
            audio, rate = soundfile.read(clip.path, dtype="float64", always_2d=True)
        samples = golden.quantize(audio, rate)
        name = None
        if not clip.entry["codec"].startswith(LOSSLESS):
            name = f"{clip.id}.flac"
            part = out / f".{name}"
            soundfile.write(
                part, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16", compression_level=1.0
            )
            part.replace(out / name)
        digest = golden.pcm_digest(samples)
        index[clip.id] = {"file": name, "n_samples": len(samples), "sha256": digest}
        log.info("%s: %d samples, %s", clip.id, len(samples), name or "from its source")
    write_atomically(out / "index.json", (json.dumps(index, indent=1) + "\n").encode())


# ---------------------------------------------------------------- the reference


def load_model(name: str, path: Path) -> tuple[Any, dict[str, str]]:
    """openai-whisper's model in fp32 with the weights of ``path``, and the digests of its files."""
    import torch
    import whisper
    from whisper.model import ModelDimensions, Whisper

    from whisper_opt.export.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(path)
    model = Whisper(ModelDimensions(**checkpoint.dims.to_dict()))
    state = {name: torch.from_numpy(t.read()) for name, t in checkpoint.tensors.items()}
    model.load_state_dict(state, strict=True)
    model.set_alignment_heads(whisper._ALIGNMENT_HEADS[name])  # as whisper.load_model does
    return model.float().eval(), dict(checkpoint.source.sha256)


def finite(value: Any) -> float | None:
    """``value`` rounded to six digits, or None when it is infinite."""
    number = float(value)
    return round(number, 6) if math.isfinite(number) else None


class Recorder:
    """Records one ``whisper.transcribe`` call beyond its result.

    Attributes:
        windows: one entry per window, as ``golden.Window`` describes.
        languages: language probabilities, most probable first, or None without detection.
    """

    def __init__(self, model: Any) -> None:
        self.windows: list[dict[str, Any]] = []
        self.languages: list[tuple[str, float | None]] | None = None
        self._model = model
        self._decoding = importlib.import_module("whisper.decoding")
        self._transcribe = importlib.import_module("whisper.transcribe")
        self._begin: int | None = None  # first timestamp id while the timestamp rule runs
        self._gaps: list[float | None] = []
        self._switches: list[float | None] = []
        self._slice: tuple[int, int] | None = (0, 0)  # of a window not decoded yet
        self._scores: list[float] = []
        self._runner_up: list[int] | None = None

    @contextlib.contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Wrap the functions of the reference during a ``with`` block."""
        module = self._decoding
        functional = SimpleNamespace(pad=module.F.pad, log_softmax=self._log_softmax(module.F))
        numeric = SimpleNamespace(
            inf=np.inf, nan=np.nan, argsort=np.argsort, argmax=self._argmax(np.argmax)
        )
        rule, greedy = module.ApplyTimestampRules, module.GreedyDecoder
        ranker = module.MaximumLikelihoodRanker
        with contextlib.ExitStack() as stack:
            for target, name, new in (
                (module, "F", functional),
                (module, "np", numeric),
                (ranker, "rank", self._rank(ranker.rank)),
                (rule, "apply", self._apply(rule.apply)),
                (greedy, "update", self._update(greedy.update)),
                (self._transcribe, "pad_or_trim", self._pad_or_trim(self._transcribe.pad_or_trim)),
                (self._model, "decode", self._decode(self._model.decode)),
                (self._model, "detect_language", self._detect(self._model.detect_language)),
            ):
                stack.enter_context(mock.patch.object(target, name, new))
            yield self

    def _log_softmax(self, functional: Any) -> Any:
        def wrapped(logits: Any, dim: int) -> Any:
            out = functional.log_softmax(logits, dim=dim)
            if self._begin is not None:
                stamps = out[0, self._begin :].logsumexp(dim=-1)
                self._switches.append(finite(stamps - out[0, : self._begin].max()))
            return out

        return wrapped

    def _apply(self, apply: Any) -> Any:
        def wrapped(rule: Any, logits: Any, tokens: Any) -> None:
            self._begin = rule.tokenizer.timestamp_begin
            try:
                apply(rule, logits, tokens)
            finally:
                self._begin = None

        return wrapped

    def _update(self, update: Any) -> Any:
        def wrapped(decoder: Any, tokens: Any, logits: Any, sums: Any) -> Any:
            best, second = logits[0].float().topk(2).values.tolist()
            self._gaps.append(finite(best - second))
            return update(decoder, tokens, logits, sums)

        return wrapped

    def _pad_or_trim(self, pad_or_trim: Any) -> Any:
        def wrapped(mel: Any, length: int) -> Any:
            self._slice = (mel.storage_offset(), mel.shape[-1])  # mel[:, seek : seek + n]
            return pad_or_trim(mel, length)

        return wrapped

    def _argmax(self, argmax: Any) -> Any:
        def wrapped(scores: list[float]) -> Any:
            self._scores = scores
            return argmax(scores)

        return wrapped

    def _rank(self, rank: Any) -> Any:
        def wrapped(ranker: Any, tokens: Any, sums: Any) -> Any:
            selected = rank(ranker, tokens, sums)
            order = np.argsort([-score for score in self._scores], kind="stable")
            self._runner_up = tokens[0][order[1]].tolist() if len(order) > 1 else None
            return selected

        return wrapped

    def _decode(self, decode: Any) -> Any:
        def wrapped(mel: Any, options: Any) -> Any:
            self._gaps, self._switches = [], []
            result = decode(mel, options)
            attempt = self._attempt(result, options.beam_size is not None)
            if self._slice is None:  # the same window again: its last result was rejected
                names = (*attempt, "rejected")
                last = self.windows[-1]
                refused = {name: last.pop(name) for name in names if name in last}
                earlier = refused.pop("rejected", [])
                last.update(attempt, rejected=[*earlier, refused])
                return result
            seek, n_frames = self._slice
            self._slice = None
            n_prompt = min(len(options.prompt), self._model.dims.n_text_ctx // 2 - 1)
            place = {"seek": seek, "n_frames": n_frames, "n_prompt": n_prompt}
            self.windows.append({**place, **attempt})
            return result

        return wrapped

    def _attempt(self, result: Any, is_beam: bool) -> dict[str, Any]:
        """``golden.Ranking`` of one result."""
        best = sorted(self._scores, reverse=True)
        return {
            "tokens": result.tokens,
            "temperature": result.temperature,
            "avg_logprob": finite(result.avg_logprob),
            "compression_ratio": finite(result.compression_ratio),
            "no_speech_prob": finite(result.no_speech_prob),
            # margins of a beam would be those of its first row
            "gaps": [] if is_beam else self._gaps,
            "switches": [] if is_beam else self._switches,
            "rank_gap": finite(best[0] - best[1]) if len(best) > 1 else None,
            "runner_up": self._runner_up,
        }

    def _detect(self, detect: Any) -> Any:
        def wrapped(mel: Any) -> Any:
            tokens, probs = detect(mel)
            ranked = sorted(probs.items(), key=lambda item: -item[1])
            self.languages = [(name, finite(p)) for name, p in ranked[:N_LANGUAGES]]
            return tokens, probs

        return wrapped


def config_options(config: str) -> dict[str, Any]:
    """Keyword arguments of ``whisper.transcribe`` for one of ``ALL_CONFIGS``."""
    return {"fp16": False, "beam_size": None, **golden.options(config)}


def transcribe(model: Any, clip_id: str, config: str) -> dict[str, Any]:
    """One ``golden.GoldenClip`` from the reference."""
    import whisper

    pcm = golden.clip_pcm(clip_id)
    with Recorder(model).recording() as seen:
        result = whisper.transcribe(model, pcm, **config_options(config))
    for segment in result["segments"]:
        for name, value in segment.items():
            if isinstance(value, float):
                segment[name] = round(value, 6)
        for word in segment.get("words", []):
            word["probability"] = round(word["probability"], 4)
            word.update(start=round(word["start"], 4), end=round(word["end"], 4))
    return {
        "n_samples": len(pcm),
        "pcm_sha256": golden.pcm_digest(np.rint(pcm * 32768).astype(np.int16)),
        "language": result["language"],
        "language_probs": seen.languages,
        "text": result["text"],
        "segments": result["segments"],
        "windows": seen.windows,
    }


# ---------------------------------------------------------------- files


def read_file(path: Path) -> dict[str, Any]:
    """Clips of the golden file ``path`` by id; empty if there is no file."""
    if not path.exists():
        return {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return dict(json.load(file)["clips"])


class Part:
    """The clips of one file so far, one per line, stored immediately."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.clips: dict[str, Any] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").split("\n"):
                with contextlib.suppress(json.JSONDecodeError):  # a line truncated by a kill
                    self.clips.update(json.loads(line))

    def add(self, clip_id: str, made: dict[str, Any]) -> None:
        """Keep one clip."""
        self.clips[clip_id] = made
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            text = json.dumps({clip_id: made}, ensure_ascii=False, allow_nan=False)
            file.write(f"\n{text}\n")

    def delete(self) -> None:
        """Forget them."""
        self.clips = {}
        self._path.unlink(missing_ok=True)


def wanted_clips(args: argparse.Namespace, name: str, config: str) -> list[str]:
    """Ids to transcribe, shortest clips first, copies last; ``-nocond``: more than one window."""
    ids = [i for i in golden.wanted(name, config) if i not in EXCLUDED]
    if config.endswith("-nocond"):
        plain = read_file(args.out / f"{name}-{config[: -len('-nocond')]}.json.gz")
        ids = [i for i in ids if i not in plain or len(plain[i]["windows"]) > 1]
    found = sorted(map(golden.clip, ids), key=lambda clip: clip.duration_s)
    return [clip.id for clip in sorted(found, key=lambda clip: clip.kind == "format-variant")]


def write_file(
    args: argparse.Namespace, name: str, config: str, clips: dict[str, Any], weights: dict[str, str]
) -> None:
    """Write the golden file of ``clips``."""
    target = args.out / f"{name}-{config}.json.gz"
    order = [clip.id for clip in golden.clips() if clip.id in clips]
    header = {
        "format": FORMAT,
        "model": name,
        "weights_sha256": weights,
        "config": config,
        "options": config_options(config),
        "command": f"python tools/goldens/make_golden.py --model {name}=DIR --configs {config}",
        "threads": args.threads,
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "excluded": EXCLUDED,
        "missing": sorted(set(wanted_clips(args, name, config)) - set(order)),
    }
    content = {"header": header, "clips": {clip_id: clips[clip_id] for clip_id in order}}
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_atomically(target, gzip.compress(text.encode(), 9, mtime=0))
    log.info("%s: %d clips, %d bytes", target.name, len(order), target.stat().st_size)


def make_file(args: argparse.Namespace, name: str, path: Path, config: str) -> None:
    """Transcribe every requested clip with one model and configuration; write the file."""
    target = args.out / f"{name}-{config}.json.gz"
    part = Part(args.parts / f"{name}-{config}.jsonl")
    if args.force:
        part.delete()
    kept = {} if args.force else read_file(target)
    ids = wanted_clips(args, name, config)
    if args.clips:
        ids = [i for i in ids if i in args.clips]
    else:
        ids = [i for i in ids if i not in kept and i not in part.clips]
    if args.finish:
        ids = []
    if not (ids or part.clips):
        log.info("%s: nothing to add", target.name)
        return
    model, weights = load_model(name, path)
    begin = time.monotonic()
    for i, clip_id in enumerate(ids, 1):
        found = transcribe(model, clip_id, config)
        part.add(clip_id, found)
        counts = len(found["windows"]), sum(len(w["tokens"]) for w in found["windows"])
        done = f"{target.name} {i}/{len(ids)} {time.monotonic() - begin:.0f} s"
        log.info("%s: %s windows %d tokens %d", done, clip_id, *counts)
    write_file(args, name, config, {**kept, **part.clips}, weights)
    part.delete()


def named_path(text: str) -> tuple[str, Path]:
    """Parse ``NAME=DIR``."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, Path(path)


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description="make tests/data/golden with openai-whisper")
    parser.add_argument("--pcm", action="store_true", help="decode the clips to data/golden/pcm")
    parser.add_argument("--model", type=named_path, action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--out", type=Path, default=golden.GOLDEN)
    parser.add_argument("--configs", nargs="+", choices=ALL_CONFIGS, default=ALL_CONFIGS)
    parser.add_argument("--parts", type=Path, default=PARTS, help="folder of unfinished files")
    parser.add_argument("--finish", action="store_true", help="write files of the clips that exist")
    parser.add_argument("--clips", nargs="+", metavar="ID", help="redo only these clips")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force", action="store_true", help="replace existing files")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if not (args.pcm or args.model):
        parser.error("nothing to do: give --pcm, --model or both")
    if args.pcm:
        make_pcm(golden.PCM)
    if args.model:
        import torch

        torch.set_num_threads(args.threads)
    for config in args.configs:
        for name, path in args.model:
            make_file(args, name, path, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
