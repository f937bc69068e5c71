"""Images, docs/deploy.md and docs/troubleshooting.md: names and quotations exist."""

from __future__ import annotations

import ast
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import make_constraints
import pytest
from gpu import unrun
from gpu.checks import all_checks
from gpu.sizes import SIZES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
REMEDIES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
IMAGES = sorted((ROOT / "deploy").glob("Dockerfile.*"))
EXTRAS = make_constraints.read_project()["optional-dependencies"]

# images


def instructions(path: Path) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest), continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.M)
    lines = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
    pairs = [line.split(None, 1) for line in lines]
    return [(pair[0], pair[1]) for pair in pairs]


KNOWN = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "SHELL", "USER", "WORKDIR"}


def ignored(name: str) -> bool:
    """Whether .dockerignore keeps a path of the repository out of the image."""
    out = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        parents = [name, *(parent.as_posix() for parent in Path(name).parents)]
        if any(fnmatch.fnmatch(one, pattern) for one in parents if one != "."):
            out = not line.startswith("!")
    return out


def test_there_are_two_images() -> None:
    assert [path.suffix for path in IMAGES] == [".cpu", ".tensorrt"]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_an_image_is_well_formed(path: Path) -> None:
    found = instructions(path)
    names = [name for name, _ in found]
    assert set(names) <= KNOWN
    before = names[: names.index("FROM")]
    assert set(before) <= {"ARG"}
    for name, rest in found:
        if name in ("ENTRYPOINT", "CMD", "SHELL"):
            assert isinstance(json.loads(rest), list)
    assert [name for name in names if name in ("USER", "ENTRYPOINT", "CMD")] == [
        "USER",
        "ENTRYPOINT",
        "CMD",
    ]
    users = [rest for name, rest in found if name == "USER"]
    assert users == ["10001"]  # a number, so that container runtimes can check that it is not root
    assert not [rest for name, rest in found if name == "FROM" and rest.endswith(":latest")]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_copied_files_exist_and_are_not_ignored(path: Path) -> None:
    copies = [rest for name, rest in instructions(path) if name == "COPY"]
    for rest in copies:
        if rest.startswith("--from="):
            continue
        *sources, _ = rest.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not ignored(source), source
    assert any("whisper_opt" in rest for rest in copies)
    assert any("README.md" in rest and "LICENSE" in rest for rest in copies)  # the build reads them


@pytest.mark.parametrize("name", ["models/base", "engines", ".git", "tests/data/tokens.json"])
def test_unneeded_files_are_ignored(name: str) -> None:
    assert ignored(name)


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_an_image_installs_tested_versions_and_keeps_no_cache(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    installs = [rest for name, rest in instructions(path) if "pip install" in rest]
    assert installs
    for rest in installs:
        assert "--no-cache-dir" in rest
        assert re.search(r"-c \"?constraints/py", rest)
    named = re.findall(r"\.\[([a-z0-9,-]+)\]", text) + re.findall(r"EXTRAS=([a-z0-9,-]+)", text)
    assert named
    for extras in named:
        assert set(extras.split(",")) <= set(EXTRAS)
    assert (ROOT / "constraints" / "py312.txt").is_file()


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_hadolint(path: Path) -> None:
    """The extra [dev] brings it, on Linux and x86-64."""
    beside = str(Path(sys.executable).parent)
    program = shutil.which("hadolint", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("not tested: hadolint is not installed")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("compose-spec", "deploy/compose.yaml"),
        *(("github-workflows", f".github/workflows/{name}.yml") for name in ("ci", "release")),
    ],
)
def test_a_file_follows_its_schema(schema: str, file: str) -> None:
    pytest.importorskip("check_jsonschema", reason="not tested: it is not installed")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*command, file], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_says_that_images_were_never_built() -> None:
    assert "They have never been built or run" in PAGE


# the page


def _literals(path: Path) -> Iterator[str]:
    """Strings of a module; values in f-strings are ``…``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            yield "".join(map(str, parts))


def _said() -> list[str]:
    return [
        re.sub(r"\s+", " ", text)
        for path in sorted((ROOT / "whisper_opt").rglob("*.py"))
        for text in _literals(path)
    ]


def _quoted() -> list[str]:
    return re.findall(r"^\| `(.+?)` \|", REMEDIES, re.M)


def _is_said(message: str, said: list[str]) -> bool:
    """Whether a text contains the message, in which ``…`` matches anything."""
    parts = [re.escape(part.strip()) for part in message.split("…") if part.strip(" .;:,")]
    pattern = re.compile(r".{0,80}?".join(parts))
    return any(pattern.search(text) for text in said)


def test_every_message_of_the_troubleshooting_tables_is_one_of_ours() -> None:
    said, quoted = _said(), _quoted()
    assert len(quoted) >= 40
    assert [message for message in quoted if not _is_said(message, said)] == []


def test_an_unknown_message_is_found() -> None:
    said = _said()
    assert not _is_said("the GPU is on fire (…)", said)
    assert not _is_said("this ONNX Runtime (…) has no TPUExecutionProvider", said)


def test_the_extras_of_the_page_exist() -> None:
    named = set(re.findall(r"\[((?:cpu|cuda|tensorrt)[a-z0-9-]*)\]", PAGE))
    assert len(named) >= 5
    assert named <= set(EXTRAS)


def test_files_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`((?:scripts|deploy)/[\w./-]+)`", PAGE))
    assert {"scripts/gpu/unrun.py", "deploy/Dockerfile.cpu"} <= named
    assert [name for name in named if not (ROOT / name).is_file()] == []


# code that never ran


def test_the_table_of_untested_gpu_code_is_current() -> None:
    assert unrun.page(PAGE) == PAGE, "run: python scripts/gpu/unrun.py"


def test_every_module_that_uses_a_gpu_is_listed() -> None:
    listed = {entry.module for entry in unrun.ENTRIES}
    assert set(unrun.gpu_modules()) - listed == set()
    for module in ("whisper_opt/runtime/gpus.py", "whisper_opt/runtime/cuda/onnxruntime.py"):
        assert module in unrun.gpu_modules()


def test_every_check_of_the_list_is_one_of_gpu_check() -> None:
    names = [check.name for check in all_checks(list(SIZES), on_cpu=False)]
    for entry in unrun.ENTRIES:
        assert fnmatch.filter(names, entry.check) or not entry.check, entry


def test_a_missing_name_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text("class A:\n    def b(self):\n        pass\n", encoding="utf-8")
    assert unrun._part(path, ("A.b",)) == "`A.b`"
    assert unrun._part(path, ()) == "all"
    with pytest.raises(LookupError, match=r"has no A\.c"):
        unrun._part(path, ("A.c",))


def test_no_results_of_a_gpu_contradict_the_list() -> None:
    """Entries that committed results cover must be removed."""
    measured = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (ROOT / "benchmarks" / "results").glob("gpu-*.json")
    ]
    for figures in measured:
        if figures["environment"]["compute_capability"] is None:
            continue
        passed = [name for name, one in figures["checks"].items() if one["outcome"] == "ok"]
        for entry in unrun.ENTRIES:
            assert not fnmatch.filter(passed, entry.check), entry.module
