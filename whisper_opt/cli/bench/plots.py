"""Plots of a benchmark: latency by duration, throughput by batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whisper_opt.cli.bench.report import precision_text
from whisper_opt.core.errors import BackendUnavailable, OptionError
from whisper_opt.core.remedies import install_hint

__all__ = ["check_plots", "plot", "series"]

FORMATS = ("png", "svg")

Series = dict[str, list[tuple[float, float]]]
"""Points (x, y) sorted by x, by label; at least two per label."""


def check_plots() -> None:
    """Check that plots can be drawn.

    Raises:
        BackendUnavailable: matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BackendUnavailable(
            f"--plots needs matplotlib, which is not installed; {install_hint('bench')}"
        ) from error


def series(content: Mapping[str, Any]) -> dict[str, Series]:
    """The series that a benchmark's results contain.

    Returns:
        ``latency``: seconds of transcription by seconds of audio at batch size 1; the points are
        the durations requested, or the recordings. ``throughput``: seconds of audio per second by
        batch size.
    """
    lengths = {entry["name"]: entry["seconds"] for entry in content["recordings"]}
    latency: Series = {}
    throughput: Series = {}
    for entry in content["configurations"]:
        if "median_s" not in entry:
            continue
        duration = "" if entry["length_s"] is None else f", {entry['length_s']:g} s"
        label = f"{_label(entry)}{duration}"
        throughput.setdefault(label, []).append((entry["batch_size"], entry["rtfx"]))
        if entry["batch_size"] == 1:
            points = latency.setdefault(_label(entry), [])
            if entry["length_s"] is not None:
                points.append((entry["length_s"], entry["median_s"]))
            else:
                points += [(lengths[name], s) for name, s in entry.get("each_s", {}).items()]
    found = {"latency": latency, "throughput": throughput}
    return {
        name: {label: sorted(points) for label, points in lines.items() if len(points) > 1}
        for name, lines in found.items()
    }


def _label(entry: Mapping[str, Any]) -> str:
    beam = "greedy" if entry["beam_size"] == 1 else f"beam {entry['beam_size']}"
    n = entry["threads"]
    threads = "" if n is None else f", {n} thread{'s'[: n > 1]}"
    return f"{entry['engine']} {precision_text(entry)}{threads}, {beam}"


_AXES = {
    "latency": ("Latency", "duration of the audio (s)", "transcription time (s)"),
    "throughput": ("Throughput", "batch size (windows)", "seconds of audio per second"),
}


def plot(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw all series as PNG and SVG.

    Args:
        content: contents of a benchmark's file.
        folder: created if missing.

    Returns:
        The files.

    Raises:
        BackendUnavailable: matplotlib is missing.
        OptionError: there is nothing to draw: neither several durations at batch size 1, nor
            several batch sizes.
    """
    check_plots()
    found = {name: lines for name, lines in series(content).items() if lines}
    if not found:
        raise OptionError(
            "there is nothing to plot: give --seconds several lengths, or --batch-size several"
            " sizes"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return [path for name, lines in found.items() for path in _draw(name, lines, folder)]


def _draw(name: str, lines: Series, folder: Path) -> Sequence[Path]:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: no display, no state

    title, x_label, y_label = _AXES[name]
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, points in lines.items():
        xs, ys = zip(*points)
        axes.plot(xs, ys, marker="o", label=label)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    if name == "throughput":
        axes.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    files = [folder / f"{name}.{form}" for form in FORMATS]
    with rc_context({"svg.fonttype": "none"}):  # text stays text
        for file in files:
            figure.savefig(file, dpi=150)
    return files
