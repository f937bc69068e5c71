"""Tables of the results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gpu.measure import CASES
from gpu.roofline import encoder_work, lower_bound, step_work
from whisper_opt.core.dims import ModelDims

__all__ = ["report"]


def report(content: Mapping[str, Any], sizes: Mapping[str, ModelDims]) -> str:
    """The whole report: machine, outcomes, conformance, latency and roofline."""
    checks, machine = content["checks"], content["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [f"{machine['device']}; {packages}", ""]
    rates = _rates(checks)
    if rates is not None:
        gigabytes, teraflops = rates["bytes_per_second"] / 1e9, rates["flop_per_second"] / 1e12
        lines += [f"measured: copy {gigabytes:.0f} GB/s, product {teraflops:.2f} TFLOP/s", ""]
    lines += _table(("check", "outcome", "seconds", "error"), _outcomes(checks))
    lines += ["", *_table(("conformance", "best tokens", "of", "error"), _conformance(checks))]
    header = (
        "latency, ms",
        "encode",
        "at least",
        "prefill",
        "step p50",
        "p95",
        "in runs",
        "at least",
        "times",
    )
    lines += ["", *_table(header, _latency(checks, rates, sizes))]
    return "\n".join(lines)


def _rates(checks: Mapping[str, Any]) -> Mapping[str, float] | None:
    for name in ("torch", "bindings", "numpy"):
        found = checks.get(f"roofline/{name}", {}).get("parts", {}).get("rates")
        if found:
            rates: Mapping[str, float] = found
            return rates
    return None


def _outcomes(checks: Mapping[str, Any]) -> Iterator[Sequence[object]]:
    for name, check in checks.items():
        yield name, check["outcome"], check["seconds"], check["error"][:100]


def _conformance(checks: Mapping[str, Any]) -> Iterator[Sequence[object]]:
    for name, check in checks.items():
        kind, _, rest = name.partition("/")
        for part, found in check["parts"].items():
            if kind == "conformance":
                error = found["largest_error_in_standard_deviations"]
                yield f"{rest} {part}", found["best_tokens_agree"], found["of"], error
            elif kind == "speech":
                yield f"{rest} {part}", found["equal"], found["clips"], ""


def _latency(
    checks: Mapping[str, Any], rates: Mapping[str, float] | None, sizes: Mapping[str, ModelDims]
) -> Iterator[Sequence[object]]:
    for name, check in checks.items():
        kind, _, rest = name.partition("/")
        if kind != "latency":
            continue
        dims = sizes[rest.split("/")[0]]
        for case in CASES:
            found = check["parts"].get(case.name)
            if found is None or "error" in found:
                if found is not None or case.name in check["left"]:
                    why = "not yet" if found is None else found["error"][:60]
                    yield f"{rest} {case.name}", why, *[""] * 7
                continue
            encode, step = found["encode"]["p50_ms"], found["step"]["p50_ms"]
            least: tuple[object, object, object] = ("", "", "")
            if rates is not None:
                rate = rates["bytes_per_second"], rates["flop_per_second"]
                of_step = 1e3 * lower_bound(step_work(dims, case.batch, case.beam), *rate)
                of_encoder = 1e3 * lower_bound(encoder_work(dims, case.batch), *rate)
                least = f"{of_encoder:.2f}", f"{of_step:.3f}", f"{step / of_step:.1f}"
            yield (
                f"{rest} {case.name}",
                encode,
                least[0],
                found["prefill"]["p50_ms"],
                step,
                found["step"]["p95_ms"],
                found.get("run", {}).get("p50_ms", ""),
                *least[1:],
            )


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    cells = [[str(cell).replace("|", "/") for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in cells]
    return [lines[0], "-|-".join("-" * width for width in widths), *lines[1:]]
