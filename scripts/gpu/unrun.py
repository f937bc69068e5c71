"""Table of docs/deploy.md: code that has never run on a GPU, and how to check it.

    python scripts/gpu/unrun.py [--check]

The table is written between two marks. Modules that use a GPU must be listed here, so that none is
forgotten; names must exist, and every check must be one of ``scripts/gpu_check.py``. When results
of a GPU are committed, the entries that they cover are removed.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ENTRIES", "Entry", "gpu_modules", "main", "table"]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "deploy.md"
BEGIN, END = "<!-- never run on a GPU: made by scripts/gpu/unrun.py -->", "<!-- end -->"
REACHES = re.compile(
    r"libcuda|nvcuda|cuda[._]bindings|cudaM|(CUDA|Tensorrt)ExecutionProvider|torch\.cuda|load_driver"
    r"|load_library|trt_library"
)
"""Pattern in the source of modules that use a GPU."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """Code that never ran on a GPU.

    Attributes:
        module: path in the repository.
        names: functions, classes and methods (``Class.method``); empty: all of the module.
        tested: what the tests run without a GPU.
        check: pattern of the checks of ``gpu_check.py`` that run it; empty if another command
            does, which ``tested`` names.
    """

    module: str
    names: tuple[str, ...]
    tested: str
    check: str


_FAKES = "all of it, with a fake CUDA and a fake TensorRT in host memory"
_SAME = "all of it, with the CPU executor and with those fakes"
_BUILDS = "TensorRT for RTX, which builds without a GPU, and a stub library"

ENTRIES = (
    Entry(
        "whisper_opt/runtime/gpus.py",
        (),
        "the calls, on a driver made of Python functions",
        "build/*",
    ),
    Entry(
        "whisper_opt/runtime/devices.py",
        ("_cuda", "_tensorrt"),
        "the choice of a device, on machines made up",
        "conformance/*",
    ),
    Entry(
        "whisper_opt/cli/doctor.py", ("_devices",), "on machines made up; `whisper-opt doctor`", ""
    ),
    Entry("whisper_opt/runtime/device/executor.py", (), _SAME, "conformance/*"),
    Entry("whisper_opt/runtime/device/workspace.py", (), _SAME, "conformance/*"),
    Entry("whisper_opt/runtime/device/cache.py", (), _SAME, "conformance/*"),
    Entry("whisper_opt/runtime/device/multistep.py", (), _SAME, "conformance/*"),
    Entry("whisper_opt/runtime/device/session.py", (), _SAME, "conformance/*"),
    Entry("whisper_opt/runtime/device/backend.py", (), _SAME, "conformance/*"),
    Entry("whisper_opt/runtime/cuda/runtime.py", (), _FAKES, "conformance/*"),
    Entry("whisper_opt/runtime/tensorrt/executor.py", (), _FAKES, "conformance/*/tensorrt*"),
    Entry("whisper_opt/runtime/tensorrt/backend.py", (), _FAKES, "conformance/*/tensorrt*"),
    Entry("whisper_opt/export/tensorrt/token_check.py", ("_check_tokens",), _FAKES, "build/*"),
    Entry("whisper_opt/runtime/tensorrt/library.py", (), _BUILDS, "build/*"),
    Entry("whisper_opt/export/tensorrt/network.py", (), _BUILDS, "build/*"),
    Entry("whisper_opt/export/tensorrt/build.py", (), _BUILDS, "build/*"),
    Entry("whisper_opt/cli/build.py", ("_build",), _BUILDS, "build/*"),
    Entry(
        "whisper_opt/runtime/cuda/onnxruntime.py",
        (),
        "all of it, with that fake CUDA and ONNX Runtime's CPU provider",
        "conformance/*/cuda*",
    ),
    Entry(
        "whisper_opt/runtime/onnxruntime/graph.py",
        ("load_graph",),
        "the CPU provider only",
        "conformance/*/cuda*",
    ),
    Entry(
        "scripts/build_engines.py",
        ("Builder._plans",),
        "a stub builder",
        "build/*",
    ),
    Entry("scripts/gpu/engines.py", ("plans",), "nothing", "build/*"),
    Entry(
        "scripts/gpu/roofline.py",
        ("torch_rates", "bindings_rates", "_copy_seconds", "_product_seconds"),
        "nothing",
        "roofline/*",
    ),
    Entry("scripts/gpu/baseline.py", (), "nothing; run by hand on a CPU", "latency/*/torch-*"),
)


def _part(path: Path, names: tuple[str, ...]) -> str:
    """```a`, `B.c```: the names, which must exist; ``all`` if there are none."""
    found = set(_definitions(ast.parse(path.read_text(encoding="utf-8"))))
    missing = [name for name in names if name not in found]
    if missing:
        raise LookupError(f"{path} has no {missing[0]}; fix ENTRIES of scripts/gpu/unrun.py")
    return ", ".join(f"`{name}`" for name in names) or "all"


def _definitions(node: ast.AST, prefix: str = "") -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            yield prefix + child.name
            yield from _definitions(child, f"{prefix}{child.name}.")


def gpu_modules(root: Path = ROOT) -> list[str]:
    """Modules of the library and its scripts that use a GPU."""
    paths = [
        path
        for folder in ("whisper_opt", "scripts")
        for path in sorted((root / folder).rglob("*.py"))
        if path.resolve() != Path(__file__).resolve()
    ]
    return [
        path.relative_to(root).as_posix()
        for path in paths
        if REACHES.search(path.read_text(encoding="utf-8"))
    ]


def table() -> str:
    """The rows, in Markdown."""
    rows = ["| module | part | what tests run instead | check |", "|---|---|---|---|"]
    for entry in ENTRIES:
        part = _part(ROOT / entry.module, entry.names)
        check = f"`--only '{entry.check}'`" if entry.check else ""
        rows.append(f"| `{entry.module}` | {part} | {entry.tested} | {check} |")
    return "\n".join(rows)


def page(text: str) -> str:
    """The page with the current table."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> int:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description="write the table of docs/deploy.md")
    parser.add_argument("--check", action="store_true", help="only compare")
    text = PAGE.read_text(encoding="utf-8")
    new = page(text)
    if not parser.parse_args().check:
        PAGE.write_text(new, encoding="utf-8")
        return 0
    return int(new != text)


if __name__ == "__main__":
    sys.exit(main())
