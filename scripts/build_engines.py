"""Build all engines of a list: checkpoints x precisions x dialects, and their TensorRT plans.

    python scripts/build_engines.py [LIST] [--dry-run]

The default of LIST is engines/engines.toml of this repository. The list is TOML:

    output = "engines"                    # folder, relative to the list

    [[engine]]
    source = "openai/whisper-base"        # as of `whisper-opt export`; paths: relative to the list
    name = "base"                         # default: the last part of the source
    precision = ["fp32", "fp16"]          # default: ["fp32"]
    dialect = ["contrib", "standard"]     # default: ["contrib"]
    # revision, tokenizer, alignment_heads: as of `export`

    [engine.plans]                        # plans of the fp16 standard engine; none without this
    max_batch = 16                        # options of `whisper-opt build`
    library = "tensorrt"
    gpus = ["sm_86"]

Engines are named NAME-PRECISION-DIALECT. An engine that exists and was made from the same weights
is kept, so that a list can be built again after a failure or an addition; one engine that fails
does not stop the others. `engines.json` in the output folder has the outcome of each; it is
rewritten after every engine. Exit status: 0 if all engines of the list exist, 1 if one failed, 2 if
the list is invalid.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Union

from whisper_opt.core.errors import EngineError, OptionError, WhisperOptError
from whisper_opt.core.files import replace_file
from whisper_opt.export import export
from whisper_opt.export.checkpoints import Checkpoint, load_checkpoint
from whisper_opt.export.graphs.dialects import DIALECTS
from whisper_opt.export.graphs.precision import PRECISIONS
from whisper_opt.runtime.engine import MANIFEST, Engine, read_engine, sha256

DEFAULT = Path(__file__).resolve().parent.parent / "engines" / "engines.toml"
INDEX = "engines.json"
INDEX_VERSION = 1
FOR_PLANS = ("fp16", "standard")
"""Precision and dialect of engines for TensorRT plans."""
_KEYS = ("name", "source", "precision", "dialect", "revision", "tokenizer", "alignment_heads")


class ListError(Exception):
    """The list is invalid."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One engine of the list.

    Attributes:
        name: name of its directory.
        source: path or hub id.
        precision: ``fp32`` or ``fp16``.
        dialect: ``contrib`` or ``standard``.
        load: arguments of ``load_checkpoint``.
        alignment_heads: as of ``export``.
        plans: arguments of ``build_plans``, or None for no plans.
    """

    name: str
    source: str
    precision: str
    dialect: str
    load: Mapping[str, str]
    alignment_heads: Union[str, tuple[tuple[int, int], ...], None]
    plans: Union[Mapping[str, Any], None]


# ---------------------------------------------------------------- the list


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise ListError(
                "Python 3.9 and 3.10 need the package tomli to read TOML; pip install tomli"
            ) from error
    try:
        found: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ListError(f"the list is not TOML: {error}") from error
    return found


def read_list(path: Path) -> tuple[Path, list[Wanted]]:
    """The output folder and the engines of a list.

    Raises:
        ListError: it cannot be read, or has unknown keys or invalid values.
    """
    try:
        tables = parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ListError(f"cannot read {path}: {error}") from error
    _known(tables, ("output", "engine"), "the list")
    output, listed = tables.get("output", "engines"), tables.get("engine")
    if not isinstance(output, str) or not output:
        raise ListError(f"output is {output!r}; expected the name of a folder")
    if not isinstance(listed, list) or not listed:
        raise ListError("the list has no [[engine]]; see the docstring of scripts/build_engines.py")
    wanted = [engine for table in listed for engine in _engines(table, path.parent)]
    names = [engine.name for engine in wanted]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ListError(f"two engines are named {twice}; rename one of them")
    return path.parent / output, wanted


def _known(table: Any, keys: Sequence[str], what: str) -> None:
    if not isinstance(table, dict):
        raise ListError(f"{what} is {table!r}; expected a table")
    unknown = [key for key in table if key not in keys]
    if unknown:
        raise ListError(f"unknown key {unknown[0]!r} in {what}; expected {', '.join(keys)}")


def _engines(table: Any, base: Path) -> Iterator[Wanted]:
    _known(table, (*_KEYS, "plans"), "an [[engine]]")
    source = table.get("source")
    if not isinstance(source, str) or not source:
        raise ListError(f"source is {source!r}; expected a path or a hub id")
    where = str(base / source) if (base / source).exists() else source
    name = table.get("name", source.rstrip("/").split("/")[-1])
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ListError(f"name is {name!r}; expected letters, digits and ._-")
    kinds = [
        (precision, dialect)
        for precision in _choices(table, "precision", "fp32", PRECISIONS)
        for dialect in _choices(table, "dialect", "contrib", DIALECTS)
    ]
    plans = table.get("plans")
    if plans is not None:
        _check_plans(plans, name, kinds)
    load = {key: _text(table, key) for key in ("revision", "tokenizer") if key in table}
    if "tokenizer" in load:
        load["tokenizer"] = str(base / load["tokenizer"])
    heads = _heads(table.get("alignment_heads"))
    for precision, dialect in kinds:
        mine = plans if (precision, dialect) == FOR_PLANS else None
        full = f"{name}-{precision}-{dialect}"
        yield Wanted(full, where, precision, dialect, load, heads, mine)


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table[key]
    if not isinstance(value, str) or not value:
        raise ListError(f"{key} is {value!r}; expected a text")
    return value


def _choices(
    table: Mapping[str, Any], key: str, default: str, known: Collection[str]
) -> tuple[str, ...]:
    value = table.get(key, default)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or any(one not in known for one in values):
        raise ListError(f"{key} is {value!r}; expected a list of {', '.join(known)}")
    return tuple(dict.fromkeys(values))


def _heads(value: Any) -> Union[str, tuple[tuple[int, int], ...], None]:
    if value is None or value == "all":
        found: Union[str, None] = value
        return found
    pairs = value if isinstance(value, list) else []
    whole = all(
        isinstance(pair, list) and [type(one) for one in pair] == [int, int] for pair in pairs
    )
    if not pairs or not whole:
        raise ListError(f"alignment_heads is {value!r}; expected [[layer, head], ...] or 'all'")
    return tuple((layer, head) for layer, head in pairs)


def _check_plans(plans: Any, name: str, kinds: Sequence[tuple[str, str]]) -> None:
    from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec

    options = [field.name for field in dataclasses.fields(PlanSpec) if field.name != "capacity"]
    _known(plans, (*options, "library", "gpus"), f"the plans of {name}")
    if FOR_PLANS not in kinds:
        raise ListError(
            f"{name} has plans, but no fp16 standard engine to build them from; add"
            " fp16 to its precision and standard to its dialect"
        )
    try:
        PlanSpec(**_spec(plans))
    except OptionError as error:
        raise ListError(f"plans of {name}: {error}") from error


def _spec(plans: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plans.items() if key not in ("library", "gpus")}


# ---------------------------------------------------------------- building


class Builder:
    """Builds the engines of one list, and writes its index."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        """``path``: path of the list; ``say``: called with each line of progress."""
        self.output, self.wanted = read_list(path)
        self._say = say
        self._checkpoints: dict[tuple[Any, ...], Checkpoint] = {}
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.index: dict[str, Any] = {
            "index_version": INDEX_VERSION,
            "list": {"name": path.name, "sha256": digest},
            "engines": {},
        }

    def run(self) -> bool:
        """Build missing engines and plans; returns whether all exist."""
        failed = 0
        for wanted in self.wanted:
            begin = time.perf_counter()
            entry: dict[str, Any] = {"outcome": "failed", "error": ""}
            try:
                entry.update(self._engine(wanted))
            except (WhisperOptError, OSError) as error:
                entry["error"] = str(error)
                failed += 1
            entry["seconds"] = round(time.perf_counter() - begin, 2)
            self.index["engines"][wanted.name] = entry
            self._save()
            self._say(f"{wanted.name}: {entry['outcome']} {entry['error']}".rstrip())
        return not failed

    def plan(self) -> None:
        """Print what :meth:`run` would do; nothing is written."""
        for wanted in self.wanted:
            try:
                reason = self._reason(wanted)
                text = "keep" if reason is None else f"export ({reason})"
            except WhisperOptError as error:
                text = f"cannot be built: {error}"
            built = "" if wanted.plans is None else f", then TensorRT plans {dict(wanted.plans)}"
            self._say(f"{wanted.name}: {text}{built}")

    def _checkpoint(self, wanted: Wanted) -> Checkpoint:
        key = (wanted.source, *sorted(wanted.load.items()))
        if key not in self._checkpoints:
            arguments: dict[str, Any] = dict(wanted.load)
            self._checkpoints = {key: load_checkpoint(wanted.source, **arguments)}
        return self._checkpoints[key]

    def _reason(self, wanted: Wanted) -> Union[str, None]:
        """Why an engine must be exported; None if the existing one is up to date."""
        path = self.output / wanted.name
        if not path.exists():
            return "not there"
        try:
            manifest = read_engine(path).manifest
        except EngineError as error:
            return str(error)
        checkpoint = self._checkpoint(wanted)
        if (manifest.precision, manifest.dialect) != (wanted.precision, wanted.dialect):
            return f"it is {manifest.precision} {manifest.dialect}"
        if dict(manifest.source["sha256"]) != dict(checkpoint.source.sha256):
            return "the weights have changed"
        if (path / "tokenizer.json").read_text(encoding="utf-8") != checkpoint.tokenizer_json:
            return "the tokenizer has changed"
        heads = wanted.alignment_heads
        if isinstance(heads, tuple) and manifest.alignment_heads != tuple(sorted(heads)):
            return "the alignment heads have changed"
        return None

    def _engine(self, wanted: Wanted) -> dict[str, Any]:
        path, reason = self.output / wanted.name, self._reason(wanted)
        if reason is None:
            engine = read_engine(path)
        else:
            self._say(f"{wanted.name}: exporting, {reason}")
            engine = export(
                self._checkpoint(wanted),
                path,
                precision=wanted.precision,
                dialect=wanted.dialect,
                alignment_heads=wanted.alignment_heads,
                overwrite=True,
            )
        entry: dict[str, Any] = {
            "outcome": "kept" if reason is None else "exported",
            "path": path.relative_to(self.output).as_posix(),
            "source": engine.manifest.source["name"],
            "manifest_sha256": sha256(path / MANIFEST),
            "bytes": sum(file.size for file in engine.manifest.files.values()),
            "format_version": engine.manifest.format_version,
        }
        if wanted.plans is not None:
            entry["plans"] = self._plans(engine, wanted.plans)
        return entry

    def _plans(self, engine: Engine, wanted: Mapping[str, Any]) -> dict[str, Any]:
        from whisper_opt.export.tensorrt.build import build_plans
        from whisper_opt.export.tensorrt.token_check import token_check
        from whisper_opt.runtime.tensorrt.plan_record import RECORD
        from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec

        plans = build_plans(
            engine,
            PlanSpec(**_spec(wanted)),
            library=wanted.get("library"),
            gpus=wanted.get("gpus"),
            check_tokens=token_check(),
        )
        target = plans.record.target
        return {
            "path": plans.path.relative_to(self.output).as_posix(),
            "record_sha256": sha256(plans.path / RECORD),
            "library": f"{target.library} {target.version}",
            "gpus": list(target.gpus),
            "tokens": plans.record.tokens["status"],
        }

    def _save(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.index, indent=2) + "\n"
        replace_file(self.output / INDEX, text.encode("utf-8"))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="exit status: 0 all engines exist; 1 one failed; 2 the list is invalid",
    )
    parser.add_argument(
        "list",
        type=Path,
        nargs="?",
        default=DEFAULT,
        metavar="LIST",
        help="TOML file (default: engines/engines.toml)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    args = parser.parse_args(argv)
    try:
        builder = Builder(args.list, lambda line: print(line, flush=True))
    except ListError as error:
        print(f"build_engines: error: {error}", file=sys.stderr)
        return 2
    if args.dry_run:
        builder.plan()
        return 0
    try:
        complete = builder.run()
    except OSError as error:
        print(f"build_engines: error: cannot write {builder.output}: {error}", file=sys.stderr)
        return 1
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
