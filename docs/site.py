"""Builds the site: `make docs`. The pages of docs/ and of the root are gathered in build/docs; Zensical makes build/site of them.

A link to a file of the repository that is no page leads to a copy of that file. A link that leads nowhere ends the build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
GATHERED, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"
PROJECT = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
ASSETS = (".png", ".svg", ".css", ".gif")
LINK = re.compile(r'(\]\(|src=")([^)\s"#]+)')


def gather(to: Path) -> None:
    """Copies of all pages, the root's in project/, each with its links changed to where the copies lie."""
    pages = {path: path.relative_to(DOCS) for path in sorted(DOCS.rglob("*.md"))}
    pages |= {ROOT / name: Path("project") / name.lower() for name in PROJECT}
    for asset in (path for path in DOCS.rglob("*") if path.suffix in ASSETS):
        _copy(asset, to / asset.relative_to(DOCS))
    for source, name in pages.items():
        copy = to / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(_moved(source.read_text(encoding="utf-8"), source, copy, pages, to), encoding="utf-8")


def _moved(text: str, source: Path, copy: Path, pages: dict[Path, Path], to: Path) -> str:
    def change(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / found[2]))
        if re.match(r"\w+:", found[2]) or not target.is_relative_to(ROOT):
            return found[0]
        if target in pages:
            there = to / pages[target]
        elif target.is_relative_to(DOCS) and target.suffix in ASSETS:
            there = to / target.relative_to(DOCS)
        elif target.is_file():
            there = to / "files" / target.relative_to(ROOT)
            _copy(target, there)
        else:
            raise SystemExit(f"{source.relative_to(ROOT)}: there is no {found[2]}")
        return found[1] + os.path.relpath(there, copy.parent)

    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(change, part) for part in parts)


def _copy(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, to)


if __name__ == "__main__":
    for old in (GATHERED, SITE):
        shutil.rmtree(old, ignore_errors=True)
    gather(GATHERED)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
