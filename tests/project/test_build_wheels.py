"""``scripts/build_wheels.py``: checks of wheels, failures, and a wheel that is installed."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import build_wheels
import pytest
import try_wheel
import wheel_checks
from build_wheels import ALL, BuildError
from make_constraints import constraints_file
from wheel_checks import Library, check_library, check_wheel, library_path

from hatch_build import TARGETS, target_tag
from tests.conftest import Engines
from whisper_opt.runtime.native import why_no_kernels

ROOT = Path(__file__).parents[2]
EXPORTS = frozenset({"RegisterCustomOps", "whisper_opt_abi"})
LINUX, MACOS, WINDOWS = "manylinux_2_17_x86_64", "macosx_11_0_arm64", "win_amd64"
GOOD = {
    LINUX: Library(EXPORTS, frozenset({"libc.so.6", "libm.so.6"}), (2, 17)),
    MACOS: Library(EXPORTS, frozenset({"/usr/lib/libSystem.B.dylib"}), (11, 0), signed=True),
    WINDOWS: Library(EXPORTS, frozenset({"KERNEL32.dll", "api-ms-win-crt-heap-l1-1-0.dll"})),
}

# --- libraries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", GOOD)
def test_a_good_library(target: str) -> None:
    assert check_library(GOOD[target], target) == []


@pytest.mark.parametrize(
    ("target", "library", "problem"),
    [
        (
            LINUX,
            Library(frozenset({"whisper_opt_abi"}), frozenset()),
            "does not export RegisterCustomOps",
        ),
        (
            WINDOWS,
            Library(EXPORTS | {"linear"}, frozenset()),
            "exports linear; expected only RegisterCustomOps and whisper_opt_*",
        ),
        (
            LINUX,
            Library(EXPORTS, frozenset({"libgomp.so.1"})),
            "needs libgomp.so.1; expected only libc.so.6, libm.so.6",
        ),
        (
            MACOS,
            Library(EXPORTS, frozenset({"@rpath/libomp.dylib"}), (11, 0), signed=True),
            "needs @rpath/libomp.dylib; expected only /usr/lib/libSystem.B.dylib",
        ),
        (
            WINDOWS,
            Library(EXPORTS, frozenset({"msvcrt.dll", "KERNEL32.dll"})),
            "needs msvcrt.dll; expected only kernel32.dll, api-ms-win-crt-*",
        ),
        (
            LINUX,
            Library(EXPORTS, frozenset(), (2, 27)),
            "needs glibc 2.27; expected at most 2.17",
        ),
        (
            MACOS,
            Library(EXPORTS, frozenset(), (15, 0), signed=True),
            "is for macOS 15.0; expected at most 11.0",
        ),
        (
            MACOS,
            Library(EXPORTS, frozenset(), (11, 0)),
            "has no code signature, without which macOS on Apple silicon does not load it",
        ),
    ],
)
def test_a_problem_of_a_library(target: str, library: Library, problem: str) -> None:
    assert check_library(library, target) == [problem]


# --- wheels ---------------------------------------------------------------------------------------

SOURCES = ("whisper_opt/py.typed", "whisper_opt/runtime/native/linear.c")
INFO = "whisper_opt-0.1.0.dist-info"


def wheel(folder: Path, target: str, *, without: str = "", more: tuple[str, ...] = ()) -> Path:
    """A wheel of SOURCES for a target."""
    tag = target_tag(target)
    path = folder / f"whisper_opt-0.1.0-py3-none-{tag}.whl"
    names = ["whisper_opt/py.typed", *more]
    if target in TARGETS:
        names.append(library_path(target))
    names += [
        f"{INFO}/{name}" for name in ("METADATA", "RECORD", "entry_points.txt", "licenses/LICENSE")
    ]
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            if name != without:
                archive.writestr(name, "content")
        tags = [f"Tag: py3-none-{part}\n" for part in tag.split(".")]
        archive.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\n" + "".join(tags))
    return path


@pytest.fixture(autouse=True)
def _libraries_are_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is in the environment of the script alone."""
    monkeypatch.setattr(wheel_checks, "read_library", lambda data: GOOD[LINUX])


@pytest.mark.parametrize("target", [LINUX, "any"])
def test_a_good_wheel(target: str, tmp_path: Path) -> None:
    assert check_wheel(wheel(tmp_path, target), target, SOURCES) == []


@pytest.mark.parametrize(
    ("without", "more", "problem"),
    [
        ("whisper_opt/py.typed", (), "lacks whisper_opt/py.typed"),
        (library_path(LINUX), (), f"lacks {library_path(LINUX)}"),
        (f"{INFO}/licenses/LICENSE", (), f"lacks {INFO}/licenses/LICENSE"),
        (
            "",
            ("whisper_opt/notes.txt",),
            "has whisper_opt/notes.txt, which is not of the package",
        ),
        (
            "",
            ("whisper_opt/runtime/native/linear.c",),
            "has whisper_opt/runtime/native/linear.c, which is not of the package",
        ),
    ],
)
def test_other_files(without: str, more: tuple[str, ...], problem: str, tmp_path: Path) -> None:
    found = check_wheel(wheel(tmp_path, LINUX, without=without, more=more), LINUX, SOURCES)
    assert found == [problem]


def test_a_library_for_another_platform_is_no_file_of_the_package(tmp_path: Path) -> None:
    path = wheel(tmp_path, "any", more=(library_path(WINDOWS),))
    (problem,) = check_wheel(path, "any", SOURCES)
    assert problem == f"has {library_path(WINDOWS)}, which is not of the package"


def test_a_problem_of_the_library_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Library(frozenset(), frozenset())
    monkeypatch.setattr(wheel_checks, "read_library", lambda data: bad)
    (problem,) = check_wheel(wheel(tmp_path, LINUX), LINUX, SOURCES)
    assert problem == f"{library_path(LINUX)} does not export RegisterCustomOps"


def test_a_large_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel_checks, "MAX_BYTES", 100)
    (problem,) = check_wheel(wheel(tmp_path, "any"), "any", SOURCES)
    assert "bytes; expected at most 100" in problem


def test_a_wrong_tag(tmp_path: Path) -> None:
    path = wheel(tmp_path, "any")
    renamed = path.rename(path.with_name("whisper_opt-0.1.0-py3-none-win_amd64.whl"))
    assert check_wheel(renamed, "any", SOURCES) == ["is not named *-py3-none-any.whl"]
    other = wheel(tmp_path, "any")
    moved = other.rename(other.with_name("whisper_opt-0.1.0-py3-none-macosx_11_0_x86_64.whl"))
    problems = check_wheel(moved, "macosx_11_0_x86_64", SOURCES)
    assert "states the tags py3-none-any; expected py3-none-macosx_11_0_x86_64" in problems


# --- the program ----------------------------------------------------------------------------------


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """Wheels are made with these contents, by target and number; others do not compile."""
    contents: dict[str, bytes] = {}

    def hatch(kind: str, folder: Path, out: Path, target: str, seconds: str) -> Path:
        if kind == "sdist":
            out.mkdir()
            (out / "source.tar.gz").write_bytes(b"archive")
            return out / "source.tar.gz"
        if out.name not in contents:
            raise BuildError("linear.c:1: error: no such thing")
        out.mkdir()
        built = wheel(out, target)
        built.write_bytes(built.read_bytes() + contents[out.name])
        return built

    def unpack(archive: Path, folder: Path) -> Path:
        for name in SOURCES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        return folder

    monkeypatch.setattr(build_wheels, "tools", lambda: Path(sys.executable))
    monkeypatch.setattr(build_wheels, "ENVIRONMENT", Path(sys.prefix))
    monkeypatch.setattr(build_wheels, "hatch", hatch)
    monkeypatch.setattr(build_wheels, "unpack", unpack)
    monkeypatch.setattr(build_wheels, "audit", lambda wheel, target: [])
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    return contents


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_same_bytes_twice(build: dict[str, bytes], tmp_path: Path) -> None:
    build.update({"any-0": b"", "any-1": b""})
    assert build_wheels.main(["any", "--out", str(tmp_path / "out")]) == 0
    assert names(tmp_path / "out") == ["source.tar.gz", "whisper_opt-0.1.0-py3-none-any.whl"]


def test_other_bytes_are_a_problem(
    build: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build.update({"any-0": b"", "any-1": b"\0"})
    assert build_wheels.main(["any", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "any: NOT BUILT\nthe wheel differs between two builds in different folders\n" in said
    assert names(tmp_path / "out") == ["source.tar.gz"]


@pytest.mark.parametrize(("more", "status"), [([], 1), (["--skip-failing"], 0)])
def test_one_that_does_not_compile(
    more: list[str],
    status: int,
    build: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build.update({"any-0": b"", "any-1": b""})
    arguments = [MACOS, "any", "--out", str(tmp_path / "out"), *more]
    assert build_wheels.main(arguments) == status
    said = capsys.readouterr().out
    assert f"{MACOS}: NOT BUILT\nlinear.c:1: error: no such thing" in said
    assert f"NO WHEEL for {MACOS}: pip installs the one without kernels there" in said
    assert names(tmp_path / "out") == ["source.tar.gz", "whisper_opt-0.1.0-py3-none-any.whl"]


def test_an_unknown_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_wheels.main(["win_arm64"])
    assert f"unknown: win_arm64; expected some of {', '.join(ALL)}" in capsys.readouterr().err


def test_long_messages_are_cut() -> None:
    script = "import sys; print('line\\n' * 300, file=sys.stderr); sys.exit(1)"
    with pytest.raises(BuildError) as raised:
        build_wheels._run([sys.executable, "-c", script])
    assert str(raised.value).splitlines()[-2:] == ["line", "... and 288 lines"]


def test_tools_are_pinned() -> None:
    assert all("==" in requirement for requirement in build_wheels.TOOLS)


# --- trials ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "without", "passes"),
    [
        ("compiled (AVX-512 VNNI): used with int8 and int4 engines", False, True),
        ("none: this processor has no AVX-512 VNNI", False, True),
        ("none: not compiled: the package was built without a C compiler", False, False),
        ("none: /x/libwhisper_opt.so cannot be loaded (no such file)", False, False),
        ("none: /x/libwhisper_opt.so was compiled from other sources (ABI 0, ...)", False, False),
        ("none: not compiled: the package was built without a C compiler", True, True),
        ("compiled (AVX-512 VNNI): used with int8 and int4 engines", True, False),
    ],
)
def test_what_doctor_says_of_the_kernels(line: str, without: bool, passes: bool) -> None:
    if passes:
        try_wheel.check_kernels(line, without)
    else:
        with pytest.raises(try_wheel.TrialError, match=r"expected .* found: "):
            try_wheel.check_kernels(line, without)


def test_words_of_a_transcript() -> None:
    try_wheel.check_words("And so my fellow Americans,\nask what you can do for your country.\n")
    with pytest.raises(try_wheel.TrialError, match="expected 'ask what you can do"):
        try_wheel.check_words("ask not")


# --- for real -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="not tested: wheels are built on Linux")
def test_a_wheel_brings_kernels_to_a_machine_without_a_compiler(
    engines: Engines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the wheels in a folder pip takes the one for this machine; it transcribes."""
    int8 = engines.engine("tiny.en", precision="int8").path
    out = tmp_path / "out"
    script = [sys.executable, str(ROOT / "scripts" / "build_wheels.py"), "--out", str(out)]
    run([*script, LINUX, "any"])
    assert len(list(out.glob("*.whl"))) == 2
    pinned = constraints_file(f"{sys.version_info.major}.{sys.version_info.minor}")
    tried = [str(out), "--engine", str(int8), "--constraints", str(pinned)]
    assert try_wheel.main(tried) == 0, capsys.readouterr()
    (kernels,) = re.findall("^kernels: (.*)$", capsys.readouterr().out, re.M)
    reason = why_no_kernels()
    if reason is None or "processor" in reason:  # those compiled here, on the same processor
        assert kernels.startswith("none: ") is (reason is not None)


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
