"""The site of docs/: every page is in its navigation, under a name, and what the navigation names is there."""

import os
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = runpy.run_path(str(ROOT / "docs" / "site.py"))
PROJECT = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#:]+\.md)")
CLICKS = 3


def entries(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from entries(part)


def pages(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")}


def test_the_navigation_names_every_page_once(tmp_path: Path) -> None:
    SITE["gather"](tmp_path)
    named = list(entries(PROJECT["nav"]))
    assert sorted(named) == sorted(pages(tmp_path))


def test_every_page_is_reached_from_the_first_by_links_in_few_clicks(tmp_path: Path) -> None:
    SITE["gather"](tmp_path)
    reached = {"index.md"}
    for _ in range(CLICKS):
        for page in [*reached]:
            text = FENCE.sub("", (tmp_path / page).read_text(encoding="utf-8"))
            reached |= {os.path.normpath(Path(page).parent / link) for link in LINK.findall(text)}
    assert pages(tmp_path) - reached == set()


def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path) -> None:
    page = ROOT / "docs" / "index.md"
    moved = SITE["_moved"]
    assert (
        moved("[x](learn/../index.md)", page, tmp_path / "index.md", {page: Path("index.md")}, tmp_path)
        == "[x](index.md)"
    )
    with pytest.raises(SystemExit, match=r"docs/index\.md: there is no gone\.md"):
        moved("[x](gone.md)", page, tmp_path / "index.md", {}, tmp_path)
