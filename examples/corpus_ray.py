"""Transcribe a manifest with Ray Data; may be killed and run again.

    python examples/corpus_ray.py engines/base list.jsonl /data/transcripts --workers 8

Every node needs whisper_opt, and must see the engine, the recordings and the output directory under
the same names. The manifest and the output are those of ``whisper-opt corpus`` (docs/corpus.md).
"""

from __future__ import annotations

import argparse
import sys

import ray

from whisper_opt.integrations.ray_data import corpus_rows, transcribe


def main() -> int:
    """Run the program; returns 1 if a recording failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("manifest")
    parser.add_argument("out")
    parser.add_argument("--workers", type=int, default=1, help="actors; one per GPU, or per node")
    parser.add_argument("--cpus", type=int, default=4, help="cores of an actor without a GPU")
    parser.add_argument("--gpu", action="store_true", help="give each actor a GPU")
    args = parser.parse_args()
    if args.gpu:
        resources, load = {"num_gpus": 1}, {"device": "cuda"}
    else:
        resources, load = {"num_cpus": args.cpus}, {"device": "cpu", "threads": args.cpus}
    rows = ray.data.from_items(corpus_rows(args.manifest))
    results = transcribe(
        rows, args.model, workers=args.workers, out=args.out, resources=resources, load=load
    )
    done = failed = 0
    for row in results.iter_rows():
        if row["error"]:
            failed += 1
            print(f"{row['id']}: {row['error']}", file=sys.stderr)
        else:
            done += 1
    print(f"{done} recordings are there, {failed} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
