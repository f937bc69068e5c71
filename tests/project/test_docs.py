"""README, CONTRIBUTING and docs: commands, snippets, links and the map are valid."""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

from whisper_opt.cli.main import _parser
from whisper_opt.cli.whisper_flags import normalized

ROOT = Path(__file__).parents[2]
USER_PAGES = (
    *("install", "usage", "engines", "server", "corpus", "deploy"),
    *("troubleshooting", "how-it-decodes"),
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [ROOT / "docs" / f"{name}.md" for name in USER_PAGES]
COMMANDS = ("scripts/quickstart.sh", "scripts/test.sh")

DOCS = [*PAGES[:2], *sorted((ROOT / "docs").glob("*.md"))]

by_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


def commands(text: str) -> list[list[str]]:
    """Arguments of every ``whisper-opt`` command in indented blocks."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = (line.strip() for line in lines if line.startswith("    whisper-opt "))
    return [shlex.split(line.split(" | ")[0], comments=True)[1:] for line in found]


def test_the_readme_fits_on_a_page() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").split()) <= 600


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_has_two_commands(command: str) -> None:
    """Each is on its own line, and both parse."""
    text = PAGES[0].read_text(encoding="utf-8")
    assert re.search(rf"^    {re.escape(command)}( |$)", text, re.M)
    assert (ROOT / command).stat().st_mode & 0o100


@by_page
def test_lines_of_prose_are_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


@by_page
def test_commands_parse(path: Path) -> None:
    for arguments in commands(path.read_text(encoding="utf-8")):
        _parser().parse_args(normalized(arguments))  # exits on unknown arguments


def test_there_are_commands() -> None:
    found = [one for path in PAGES for one in commands(path.read_text(encoding="utf-8"))]
    assert len(found) >= 25
    assert ["transcribe", "engines/base", "talk.mp3"] in found


def test_a_wrong_command_is_found() -> None:
    ((*arguments,),) = commands("    whisper-opt transcribe ENGINE \\\n        a.mp3 --beams 5\n")
    with pytest.raises(SystemExit):
        _parser().parse_args(arguments)


@by_page
def test_snippets_are_python(path: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
        compile(code, path.name, "exec")


# links and the map


def anchors(path: Path) -> set[str]:
    """Anchors of the headings, by GitHub's rules."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_links_have_targets(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def mapped() -> dict[str, set[str]]:
    """Modules of every package, as CONTRIBUTING lists them."""
    section = PAGES[1].read_text(encoding="utf-8").split("## Map")[1].split("| beside it")[0]
    rows = re.findall(r"^\| `([a-z0-9_/]+)` \| (.*?) \|", section, re.M)
    return {package: set(re.findall(r"`([\w-]+)`", modules)) for package, modules in rows}


def test_the_map_is_that_of_the_tree() -> None:
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "whisper_opt").rglob("*.py")):
        package = path.relative_to(ROOT / "whisper_opt").parent.as_posix()
        modules = found.setdefault(package, set())
        if path.stem not in ("__init__", "__main__"):
            modules.add(path.stem)
    assert found.pop(".") == set()
    assert mapped() == found


def test_the_map_has_every_folder_beside_the_package() -> None:
    """Those that git ignores are not there in a clone."""
    section = PAGES[1].read_text(encoding="utf-8").split("| beside it")[1].split("###")[0]
    rows = "".join(re.findall(r"^\| (`.*?) \|", section, re.M))
    listed = set(re.findall(r"`([\w.-]+)/`", rows))
    ignored = re.findall(r"^([\w.*/-]+)$", (ROOT / ".gitignore").read_text("utf-8"), re.M)
    patterns = [pattern.strip("/") for pattern in ignored if "/" not in pattern.strip("/")]
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {".git", "whisper_opt"}
    found = {name for name in folders if not any(fnmatch(name, each) for each in patterns)}
    assert listed == found


def test_at_most_nine_packages() -> None:
    """Beside them are the thin packages on the public names."""
    thin = {"compat", "integrations", "plots"}
    entries = {path.name for path in (ROOT / "whisper_opt").iterdir() if path.name[0] not in "._"}
    assert len(entries - thin - {"__init__.py", "__main__.py", "__pycache__", "py.typed"}) <= 9
