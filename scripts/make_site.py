"""Builds the documentation as a site: docs/*.md, CONTRIBUTING and CHANGELOG, and the Python API.

    python scripts/make_site.py [DIR]      default: build/site; needs the extra [docs]

A broken link, a missing anchor or a page that is not in the navigation is an error. Pages are
written to be read as files too: links between them lead to files. Here links out of docs/ become
plain text, but for README (docs/index.md takes its place), CONTRIBUTING and CHANGELOG.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ADDED = ("CONTRIBUTING.md", "CHANGELOG.md")
INLINE = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
DEFINITION = re.compile(r"^\[(?P<name>[^\]]+)\]: (?P<target>\S+)\n", re.M)


def on_site(target: str, folder: Path) -> str | None:
    """The link as a page of the site writes it; None if it leads to a file that is not there.

    Raises:
        FileNotFoundError: no such file.
    """
    name, _, anchor = target.partition("#")
    if "://" in target or target.startswith("mailto:") or not name:
        return target
    path = (folder / name).resolve()
    if not path.exists():
        raise FileNotFoundError(f"a page in {folder} links to {target}, which does not exist")
    anchor = f"#{anchor}" if anchor else ""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix() + anchor
    if path.parent == ROOT and path.name in ADDED:
        return path.name + anchor
    return "index.md" if path == ROOT / "README.md" else None


def page(text: str, folder: Path) -> str:
    """The text of a page for the site.

    Args:
        text: Markdown.
        folder: where the file lies.
    """

    def inline(link: re.Match[str]) -> str:
        target = on_site(link["target"], folder)
        return link["text"] if target is None else f"[{link['text']}]({target})"

    removed = []

    def definition(link: re.Match[str]) -> str:
        target = on_site(link["target"], folder)
        if target is None:
            removed.append(link["name"])
            return ""
        return f"[{link['name']}]: {target}\n"

    # what is in a code block stays as it is
    parts = re.split(r"(^```.*?^```\n)", text, flags=re.M | re.S)
    for i in range(0, len(parts), 2):
        parts[i] = DEFINITION.sub(definition, INLINE.sub(inline, parts[i]))
    for i in range(0, len(parts), 2):
        for name in removed:
            found = re.compile(rf"\[(?:([^\]]+)\]\[)?{re.escape(name)}\](?:\[\])?")
            parts[i] = found.sub(lambda use, name=name: use[1] or name, parts[i])
    return "".join(parts)


def prepare(folder: Path) -> None:
    """Write pages and configuration into an empty folder."""
    for path in sorted(DOCS.rglob("*")):
        target = folder / "docs" / path.relative_to(DOCS)
        if path.suffix == ".md":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(page(path.read_text(encoding="utf-8"), path.parent), encoding="utf-8")
        elif path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for name in ADDED:
        text = page((ROOT / name).read_text(encoding="utf-8"), ROOT)
        (folder / "docs" / name).write_text(text, encoding="utf-8")
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (folder / "mkdocs.yml").write_text(config, encoding="utf-8")
    shutil.copyfile(ROOT / "tools" / "site" / "griffe_roles.py", folder / "griffe_roles.py")


def not_in_navigation(folder: Path) -> list[str]:
    """Pages that the navigation of the site does not name."""
    nav = yaml.safe_load((folder / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = {name for section in nav for names in section.values() for name in names}
    pages = {path.relative_to(folder / "docs").as_posix() for path in folder.rglob("*.md")}
    return sorted(pages - named)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("target", nargs="?", type=Path, default=ROOT / "build" / "site")
    target = parser.parse_args().target.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        if missing := not_in_navigation(folder):
            print(f"not in the navigation of mkdocs.yml: {', '.join(missing)}", file=sys.stderr)
            return 1
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        print(done.stdout + done.stderr, end="")
        if "griffe:" in done.stdout + done.stderr:  # docstrings: not an error by themselves
            return 1
        if done.returncode == 0:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder / "site", target)
            print(f"open {target / 'index.html'}")
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
