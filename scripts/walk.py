"""Walk through the first pages as a newcomer does: every step of README.md and docs/index.md.

python scripts/walk.py [--installed] [--models models]

The commands, the Python and the calls of curl are read from the pages and run in a fresh clone,
with a new virtual environment; then it prints how long each took. A step that fails ends the walk.
--installed runs what comes after the installation, with the packages of this Python, in a folder
with nothing but a recording.

Four things stand in for others: this repository for REPOSITORY_URL; a hub on this machine, which
has the checkpoints of models/ (scripts/get_model.py), for Hugging Face's; a free port for 8000; and
``jupyter execute`` for ``jupyter lab``. Not run are scripts/test.sh and what needs a microphone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.loopback_hub import LoopbackHub  # noqa: E402
from whisper_opt.core.model_names import MODEL_NAMES  # noqa: E402

PAGES = ("README.md", "docs/index.md")
RECORDING = ROOT / "tests" / "data" / "speech" / "formats" / "jfk-44k-stereo-128k.mp3"
ADDRESS = "127.0.0.1:8000"
"""What the pages call the server."""
PATIENCE = 300.0
"""Seconds after which a server that is not ready is an error."""
NOT_RUN = {
    "scripts/test.sh": "the tests themselves",
    "whisper-opt live": "needs a microphone",
}
"""Beginnings of commands that are not run, and why."""
INSTALLING = ("git clone", "pip install", "scripts/quickstart.sh", "jupyter")
"""Beginnings of commands that --installed leaves out."""


class WalkError(Exception):
    """A step failed; with what it printed."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A line of a shell, or a block of Python.

    Attributes:
        page: where it stands.
        kind: ``sh`` or ``python``.
        text: what is run.
    """

    page: str
    kind: str
    text: str

    @property
    def title(self) -> str:
        """One line for the table."""
        return self.text if self.kind == "sh" else "the block of Python"


def steps(page: str, text: str) -> list[Step]:
    """What a page says to run, in order: indented lines and blocks of Python."""
    found = []
    pattern = r"^```(\w*)\n(.*?)^```|^    (\S[^\n]*)$"
    joined = re.sub(r"\\\n\s*", "", text)
    for language, block, line in re.findall(pattern, joined, re.M | re.S):
        if language == "python":
            found.append(Step(page, "python", block))
        elif line:
            found.append(Step(page, "sh", re.sub(r"\s+# .*", "", line)))
    return found


def route(installed: bool) -> list[Step]:
    """The steps of all pages; one that stands on two pages is taken once."""
    left_out = (*NOT_RUN, *INSTALLING) if installed else tuple(NOT_RUN)
    found: dict[tuple[str, str], Step] = {}
    for page in PAGES:
        for step in steps(page, (ROOT / page).read_text("utf-8")):
            if not step.text.startswith(left_out):
                found.setdefault((step.kind, step.text), step)
    return list(found.values())


class Walker:
    """Runs steps in a folder."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._environment = dict(environment)
        self._server: subprocess.Popen[str] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])

    def take(self, step: Step) -> None:
        """Run one.

        Raises:
            WalkError: it failed.
        """
        if step.kind == "python":
            self._run(
                [shutil.which("python", path=self._environment["PATH"]) or "", "-c", step.text]
            )
        elif step.text.startswith("whisper-opt serve"):
            self.stop()
            self._serve(step.text)
        else:
            self._shell(step.text)

    def _shell(self, line: str) -> None:
        line = line.replace("REPOSITORY_URL", shlex.quote(ROOT.as_uri()))
        line = line.replace("jupyter lab", "jupyter execute")
        line = line.replace(ADDRESS, f"127.0.0.1:{self._port}")
        line = line.replace("curl ", "curl --silent --show-error --fail-with-body ", 1)
        self._run(["bash", "-euo", "pipefail", "-c", f"{line}; pwd >&3"], where=True)

    def _run(self, command: Sequence[str], where: bool = False) -> None:
        with tempfile.TemporaryFile("w+") as place:
            if where:
                command = [*command[:-1], command[-1].replace(">&3", f">&{place.fileno()}")]
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=self._environment,
                pass_fds=(place.fileno(),),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise WalkError(f"{done.stdout}{done.stderr}")
            place.seek(0)
            if where:
                self.folder = Path(place.read().strip())  # `cd` of a line counts for the next ones

    def _serve(self, line: str) -> None:
        ready = f"http://127.0.0.1:{self._port}/readyz"
        self._server = subprocess.Popen(
            [*shlex.split(line), "--port", str(self._port)],
            cwd=self.folder,
            env=self._environment,
            text=True,
            stderr=subprocess.PIPE,
        )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._server.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(ready, timeout=5):
                return
            time.sleep(0.05)
        raise WalkError(f"the server is not ready: {self.stop()}")

    def stop(self) -> str:
        """Stop the server, if one runs; returns what it wrote to standard error."""
        if self._server is None:
            return ""
        self._server.send_signal(signal.SIGTERM)
        _, messages = self._server.communicate()
        self._server = None
        return messages


@contextlib.contextmanager
def hub(models: Path) -> Iterator[LoopbackHub]:
    """A hub that has the checkpoints of a folder by the names of this library."""
    with LoopbackHub() as running:
        for name, known in MODEL_NAMES.items():
            if (models / name).is_dir():
                running.add(known.hub_id, models / name, commit=str(known.revision))
        yield running


def environment(home: Path, running: LoopbackHub, installed: bool) -> dict[str, str]:
    """That of the steps: a home of their own, and the hub."""
    found = {**running.environment(home), "WHISPER_OPT_CACHE": str(home / "engines")}
    programs = Path(sys.executable).parent
    if installed:
        found["PYTHONPATH"] = str(ROOT)
    else:
        found.pop("PYTHONPATH", None)
        subprocess.run([sys.executable, "-m", "venv", str(home / "venv")], check=True)
        programs = home / "venv" / "bin"
        found["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    return {**found, "PATH": f"{programs}{os.pathsep}{found['PATH']}"}


def walk(models: Path, installed: bool = False) -> list[tuple[Step, float]]:
    """Take all steps; returns the seconds of each.

    Args:
        models: folder of checkpoints, by name.
        installed: leave out the installation.

    Raises:
        WalkError: one failed.
    """
    times = []
    with tempfile.TemporaryDirectory(prefix="whisper-opt-walk-") as root, hub(models) as running:
        home = Path(root)
        (home / "here").mkdir()
        walker = Walker(home / "here", environment(home, running, installed))
        try:
            for step in route(installed):
                recording = walker.folder / "talk.mp3"
                if not recording.exists():
                    shutil.copyfile(RECORDING, recording)
                begin = time.monotonic()
                try:
                    walker.take(step)
                except WalkError as error:
                    raise WalkError(f"{step.page}: {step.title}\n{error}") from error
                times.append((step, time.monotonic() - begin))
        finally:
            walker.stop()
    return times


def main() -> int:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--installed", action="store_true", help="without the installation")
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="checkpoints by name")
    args = parser.parse_args()
    try:
        times = walk(args.models, args.installed)
    except WalkError as error:
        print(f"FAILED {error}", file=sys.stderr)
        return 1
    for step, seconds in times:
        print(f"{seconds:7.1f} s  {step.page}: {step.title}")
    print(f"{sum(seconds for _, seconds in times):7.1f} s  in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
