"""``whisper-opt engines``: what the engine cache holds, and removing it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from whisper_opt.cli.options import add_options, complain, options_from
from whisper_opt.core.errors import EngineError, OptionError
from whisper_opt.core.options import PRECISIONS, LoadOptions
from whisper_opt.runtime.cache_contents import (
    CachedEngine,
    cached_engines,
    engines_named,
    prune,
    remove_engine,
)
from whisper_opt.runtime.engine_cache import EngineCache
from whisper_opt.transcription.model_source import cached_engine, engine_precision

__all__ = [
    "EXAMPLES",
    "add_cache_arguments",
    "add_engines_arguments",
    "cached_directory",
    "megabytes",
]

EXAMPLES = (
    "examples:\n"
    "  whisper-opt engines list\n"
    "  whisper-opt engines path large-v3 --precision fp32\n"
    "  whisper-opt engines remove large-v3\n"
    "  whisper-opt engines prune --older-than 30 --dry-run\n\n"
)
"""Text after the arguments in the command's help."""

_CACHE = ("cache_dir", "device", "precision", "revision")
"""Options of loading on which the engine of a name depends."""


def add_cache_arguments(group: Any, *more: str) -> None:
    """Add the options of loading on which the engine of a name depends, and others of loading."""
    kept = {*_CACHE, *more}
    add_options(group, LoadOptions, [n for n in LoadOptions.__dataclass_fields__ if n not in kept])


def cached_directory(name: str, options: LoadOptions) -> Path:
    """The directory of an engine: a path, a directory of the cache, or that of a name's engine.

    Raises:
        EngineError: the name stands for a model that is not in the cache.
        OptionError: the name is misspelled.
    """
    cache = EngineCache(options.cache_dir)
    listed_as = cache.path / name
    if listed_as.parent == cache.path and cache.has(listed_as):
        return listed_as
    found = cached_engine(name, options)
    if found is not None and (found.exists() or not engines_named(cached_engines(cache), name)):
        return found
    if found is not None:
        raise EngineError(
            f"{name!r} is no path and no name of a model; the engines that are listed with this"
            " name are those of a local checkpoint: give its path, or the directory of an engine"
        )
    precision, dialect = engine_precision(options)
    engines = cached_engines(cache)
    others = engines_named(engines, name) or engines_named(engines, Path(name).name)
    listed = ", ".join(sorted({engine.precision for engine in others} - {precision}))
    there = f"; there is one in {listed} (--precision)" if listed else ""
    raise EngineError(
        f"{name!r} is no engine directory, and the engine cache {cache.path} has no {precision}"
        f" engine of it ({dialect} dialect){there}; it is exported when it is first used:"
        f" whisper-opt transcribe {name} AUDIO"
    )


def add_engines_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = _action(actions, "list", "list the engines in the cache", _list)
    listing.add_argument("--json", action="store_true", help="print them as JSON")
    _add_cache(listing)
    path = _action(actions, "path", "print the directory of the engine that a name loads", _path)
    path.add_argument(
        "name", metavar="NAME", help="short name, hub id, or local checkpoint, as for transcribe"
    )
    add_cache_arguments(path)
    remove = _action(actions, "remove", "remove the engines of a model from the cache", _remove)
    remove.add_argument(
        "name",
        metavar="NAME",
        help="short name, hub id (with @COMMIT: of this commit only), or a name or directory as"
        " list prints it",
    )
    remove.add_argument(
        "--precision",
        choices=[name for name in PRECISIONS if name != "auto"],
        help="remove only this one (default: all)",
    )
    _add_cache(remove)
    pruning = _action(
        actions,
        "prune",
        "remove engines that other versions exported or that cannot be read, and what killed"
        " processes left",
        _prune,
    )
    pruning.add_argument(
        "--older-than",
        metavar="DAYS",
        type=float,
        help="also remove engines that were not used for DAYS days",
    )
    pruning.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    _add_cache(pruning)


def _action(actions: Any, name: str, summary: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    parser.set_defaults(run=run)
    return parser


def _add_cache(parser: argparse.ArgumentParser) -> None:
    kept = "cache_dir"
    add_options(parser, LoadOptions, [n for n in LoadOptions.__dataclass_fields__ if n != kept])


def _cache(args: argparse.Namespace) -> EngineCache:
    return EngineCache(vars(args).get("cache_dir"))


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e6:,.1f} MB"


# list


def _list(args: argparse.Namespace) -> int:
    cache = _cache(args)
    engines = cached_engines(cache)
    if args.json:
        print(json.dumps([_values(engine) for engine in engines], indent=2))
        return 0
    if not engines:
        print(f"no engines in {cache.path}")
        return 0
    print("\n".join(_table([_HEADINGS, *map(_row, engines)])))
    total = sum(engine.size for engine in engines)
    print(f"{_count(len(engines))}, {megabytes(total)}, in {cache.path}")
    return 0


def _count(n: int) -> str:
    return "1 engine" if n == 1 else f"{n} engines"


_HEADINGS = ("NAME", "PRECISION", "DIALECT", "SIZE", "LAST USED", "STATE", "PATH")


def _row(engine: CachedEngine) -> tuple[str, ...]:
    name = engine.name if engine.revision is None else f"{engine.name}@{engine.revision[:8]}"
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(engine.last_used))
    size, state = megabytes(engine.size), _state(engine)
    return (name, engine.precision, engine.dialect, size, used, state, str(engine.path))


def _state(engine: CachedEngine) -> str:
    if engine.problem is not None:
        return "unreadable"
    return "superseded" if engine.superseded else "current"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


def _values(engine: CachedEngine) -> dict[str, Any]:
    used = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(engine.last_used))
    return {
        "name": engine.name,
        "revision": engine.revision,
        "precision": engine.precision,
        "dialect": engine.dialect,
        "size": engine.size,
        "last_used": used,
        "state": _state(engine),
        "problem": engine.problem,
        "whisper_opt": engine.whisper_opt,
        "format_version": engine.format_version,
        "path": str(engine.path),
    }


# path, remove, prune


def _path(args: argparse.Namespace) -> int:
    directory = cached_directory(args.name, options_from(args, LoadOptions))
    if not directory.exists():
        raise EngineError(f"{args.name!r} is neither a path nor the name or hub id of a model")
    print(directory)
    return 0


def _remove(args: argparse.Namespace) -> int:
    cache = _cache(args)
    found = engines_named(cached_engines(cache), args.name)
    chosen = [engine for engine in found if args.precision in (None, engine.precision)]
    if not chosen:
        there = ", ".join(sorted({engine.precision for engine in found}))
        only = f" in {args.precision}, only in {there}" if there else ""
        raise EngineError(
            f"the engine cache {cache.path} has no engine of {args.name!r}{only}; whisper-opt"
            " engines list prints what it has"
        )
    removed = [_removed(cache, engine) for engine in chosen]
    return 0 if all(removed) else 1


def _removed(cache: EngineCache, engine: CachedEngine) -> bool:
    try:
        remove_engine(cache, engine.path)
    except EngineError as error:
        complain(error)
        return False
    print(f"removed {engine.path.name} ({megabytes(engine.size)})")
    return True


def _prune(args: argparse.Namespace) -> int:
    if args.older_than is not None and not args.older_than >= 0:
        raise OptionError(f"--older-than is {args.older_than:g}; expected days, at least 0")
    cache = _cache(args)
    total = failed = 0
    for found in prune(cache, unused_days=args.older_than, dry_run=args.dry_run):
        if found.problem is not None:
            complain(found.problem)
            failed += 1
            continue
        verb = "would remove" if args.dry_run else "removed"
        name = found.path.relative_to(cache.path)
        print(f"{verb} {name} ({megabytes(found.size)}): {found.reason}")
        total += found.size
    print(f"{megabytes(total)} {'would be' if args.dry_run else 'were'} removed from {cache.path}")
    return 1 if failed else 0
