"""``whisper-opt bench``: run the benchmark that the arguments describe."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from whisper_opt.cli.bench.compare import compare, percent
from whisper_opt.cli.bench.grid import Configuration, Grid, is_engine, read_grid
from whisper_opt.cli.bench.machine import BUSY
from whisper_opt.cli.bench.measure import Benchmark, Found, load_options, options_of
from whisper_opt.cli.bench.plots import check_plots, plot
from whisper_opt.cli.bench.recordings import Recording, from_files, from_manifest
from whisper_opt.cli.bench.report import environment, figures, overview, read_json, write_json
from whisper_opt.cli.bench.settings import LISTS, Settings
from whisper_opt.cli.options import complain
from whisper_opt.cli.progress import export_bar
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import LoadOptions, TranscribeOptions
from whisper_opt.transcription.model_source import engine_directory

__all__ = ["bench"]


def bench(args: argparse.Namespace, slower: int) -> int:
    """Run ``whisper-opt bench``; ``slower``: exit status if a configuration became slower."""
    limit = None if args.fail_if_slower is None else percent(args.fail_if_slower)
    _check(args)
    if args.plots is not None:
        check_plots()
    old = read_json(args.compare[0]) if args.compare else None
    content, failed = _figures(args)
    if args.plots is not None:
        for path in plot(content, args.plots):
            print(f"wrote {path}", file=sys.stderr)
    status = 1 if failed else 0
    if old is not None:
        status = max(status, _compared(old, content, limit, slower))
    return status


def _check(args: argparse.Namespace) -> None:
    """Refuse arguments that would be ignored."""
    compared = len(args.compare or ())
    if compared > 2:
        raise OptionError(f"--compare names {compared} files; expected one or two")
    if args.fail_if_slower is not None and not compared:
        raise OptionError("--fail-if-slower is given without --compare; add --compare")
    if args.read is not None and compared == 2:
        raise OptionError("--read is given, but --compare names both files; leave one out")
    if args.read is None and compared < 2:
        return
    measuring = ("paths", "manifest", "only", "grid", "json", *LISTS)
    given = [name for name in measuring if getattr(args, name)]
    given += [
        name for name in _known(LoadOptions) + _known(TranscribeOptions) if name in vars(args)
    ]
    given += [n for n in ("rounds", "warm_up", "pause") if getattr(args, n) != getattr(Settings, n)]
    given += ["arrays"] if args.arrays else []
    if given:
        raise OptionError(
            f"{given[0]} is given, but the results are read from files and nothing is measured;"
            " leave it out"
        )


def _figures(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """The results, measured or read from a file; and whether a measurement failed."""
    if args.compare and len(args.compare) == 2:
        return read_json(args.compare[1]), False
    if args.read is not None:
        content = read_json(args.read)
        print(overview(content["configurations"]))
        return content, False
    return _measure(args)


def _compared(old: dict[str, Any], new: dict[str, Any], limit: float | None, status: int) -> int:
    found = compare(old, new)
    print(found.text())
    for warning in found.warnings:
        _warn(warning)
    if limit is None:
        return 0
    slower = found.slower(limit)
    for line in slower:
        complain(f"slower than allowed: {line}")
    return status if slower else 0


def _warn(message: str) -> None:
    """Print a warning on standard error."""
    print(f"whisper-opt: warning: {message}", file=sys.stderr)


# measuring


def _plan(args: argparse.Namespace) -> tuple[Grid, list[Recording], Settings]:
    """Grid, recordings and settings from the arguments, or else from the grid file."""
    listed: dict[str, Any] = {} if args.grid is None else read_grid(args.grid)
    engines = [Path(path) for path in args.paths if is_engine(path)]
    audio = [Path(path) for path in args.paths if not is_engine(path)]
    engines = engines or listed.get("engines", [])
    manifest = args.manifest
    if not (audio or manifest):
        audio, manifest = listed.get("audio", []), listed.get("manifest")
    only = args.only or listed.get("only", [])
    if not engines:
        raise OptionError("no engine is named; expected at least one, by its directory or name")
    if not (audio or manifest):
        raise OptionError("no recording is named; name one, or a --manifest of them")
    if only and not manifest:
        raise OptionError("--only is given without --manifest; add --manifest")
    lists = {name: getattr(args, name) or listed.get(name) for name in LISTS}
    grid = Grid(
        tuple(Path(path) for path in engines),
        **{name: tuple(values) for name, values in lists.items() if values is not None},
    )
    settings = _settings(args, listed)
    for configuration in grid.configurations():  # refuse contradictions before any work
        TranscribeOptions(**options_of(configuration, settings))
        LoadOptions(**load_options(configuration, settings))
    recordings = from_files(audio) + (from_manifest(manifest, only) if manifest else [])
    return grid, recordings, settings


def _known(options: Any) -> list[str]:
    """Names of options that are the same in all configurations."""
    return [field.name for field in dataclasses.fields(options) if field.name not in LISTS]


def _settings(args: argparse.Namespace, listed: dict[str, Any]) -> Settings:
    """The settings of the measurement."""
    if args.rounds < 1 or args.warm_up < 0 or args.pause < 0:
        raise OptionError(
            f"rounds, warm_up and pause are {args.rounds}, {args.warm_up}, {args.pause}; expected"
            " at least 1, 0 and 0"
        )
    chosen = []
    for table, options in (("load", LoadOptions), ("options", TranscribeOptions)):
        given, known = {**listed.get(table, {})}, _known(options)
        for name in given:
            if name not in known:
                raise OptionError(
                    f"the grid's table {table} has {name!r}; expected one of {', '.join(known)}"
                )
        given.update({name: value for name, value in vars(args).items() if name in known})
        chosen.append(given)
    return Settings(
        rounds=args.rounds,
        warm_up=args.warm_up,
        pause=args.pause,
        load=chosen[0],
        options=chosen[1],
        arrays=args.arrays,
    )


def _engines(configurations: list[Configuration], settings: Settings) -> dict[Configuration, Path]:
    """The engine directory of every configuration; what is no engine is exported."""
    found: dict[tuple[Path, str | None], Path] = {}
    with export_bar() as on_progress:
        for configuration in configurations:
            key = (configuration.engine, configuration.encoder_precision)
            if key not in found:
                options = LoadOptions(**load_options(configuration, settings))
                found[key] = engine_directory(str(configuration.engine), options, on_progress)
    return {one: found[one.engine, one.encoder_precision] for one in configurations}


def _measure(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    grid, recordings, settings = _plan(args)
    benchmark = Benchmark(_engines(grid.configurations(), settings), recordings, settings)
    content = {
        **environment(["whisper-opt", *args.arguments]),
        "settings": dataclasses.asdict(settings),
        "recordings": [
            {"name": r.name, "seconds": round(r.seconds, 3), "language": r.language}
            for r in recordings
        ],
        "complete": False,
        "configurations": [],
    }
    busy = content["machine"]["busy_cores_before"]
    if busy is not None and busy > BUSY:
        _warn(f"other processes keep {busy} cores busy: times will be unreliable")

    def save() -> None:
        entries = [figures(found, settings) for found in benchmark.found]
        content["configurations"] = [e for e in entries if "median_s" in e or "error" in e]
        content["complete"] = len(content["configurations"]) == len(entries) and all(
            found.error or len(found.runs) == settings.rounds for found in benchmark.found
        )
        if args.json is not None:
            write_json(args.json, content)

    with contextlib.ExitStack() as at_end:
        at_end.callback(lambda: print(overview(content["configurations"])))
        bar = at_end.enter_context(tqdm(total=benchmark.n_runs, unit="run", disable=None))

        def on_run(found: Found) -> None:
            bar.set_description(found.configuration.name, refresh=False)
            bar.update(1 if found.error is None else settings.rounds - len(found.runs))
            save()

        benchmark.run(on_run)
    failed = [found for found in benchmark.found if found.error]
    for found in failed:
        complain(found.error)
    return content, bool(failed)
