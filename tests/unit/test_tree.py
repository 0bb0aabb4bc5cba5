"""The README's annotated tree is held against the disk: nothing in it is gone, and nothing of ours is left out."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("contract", "storage", "producer", "worker", "dashboard", "src/forebay", "bench", "examples")
LINE = re.compile(r"(?P<indent>(?:(?:│|\s)\s{3})*)[├└]── (?P<name>\S+)(?:\s+(?P<note>\S.*))?")


def parse(markdown: str) -> dict[str, str]:
    """Path → note of every entry of the fenced block that opens with `forebay/`; {} when there is none."""
    block = re.search(r"^```\w*\nforebay/[^\n]*\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL)
    entries: dict[str, str] = {}
    above: list[str] = []
    for line in block[1].splitlines() if block else ():
        if not line.strip(" │"):
            continue
        match = LINE.fullmatch(line.rstrip())
        if match is None:
            raise ValueError(f"no entry of a tree: {line!r}")
        depth = len(match["indent"]) // 4
        if depth > len(above):
            raise ValueError(f"indented below nothing: {line!r}")
        above[depth:] = [match["name"].rstrip("/")]
        entries["/".join(above)] = match["note"] or ""
    return entries


def tracked_at_top() -> set[str]:
    """The first component of every path in version control; new files count already, ignored ones do not."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout: what is tracked cannot be told")
    listing = [git, "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    return {path.split("/")[0] for path in done.stdout.splitlines() if (ROOT / path).exists()}


def modules() -> set[str]:
    """Every module a reader may look for; package files and the revisions of the ledger speak for themselves."""
    found = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT)
            is_revision = "migrations/versions/" in inside.as_posix()
            if path.name != "__init__.py" and not is_revision:
                found.add(inside.as_posix())
    return found


@pytest.fixture(scope="module")
def tree() -> dict[str, str]:
    return parse((ROOT / "README.md").read_text(encoding="utf-8"))


def test_every_entry_exists_and_says_what_it_is(tree: dict[str, str]) -> None:
    assert tree, "README.md has no fenced block that opens with forebay/"
    assert [path for path in tree if not (ROOT / path).exists()] == []
    assert [path for path, note in tree.items() if not note] == []


def test_everything_at_the_top_is_in_the_tree(tree: dict[str, str]) -> None:
    assert sorted(tracked_at_top() - {path.split("/")[0] for path in tree}) == []


def test_every_module_is_in_the_tree(tree: dict[str, str]) -> None:
    assert sorted(modules() - set(tree)) == []


def test_the_parser_reads_nested_entries_and_their_notes() -> None:
    text = (
        "```\nforebay/\n├── contract/        what both ends agree on\n│   ├── job.py       a job and its states\n"
        "│   └── deep/\n│       └── leaf.py  far down\n│\n├── src/forebay/     the only door\n│   └── cli.py\n"
        "└── Makefile\n```\n"
    )
    assert parse(text) == {
        "contract": "what both ends agree on",
        "contract/job.py": "a job and its states",
        "contract/deep": "",
        "contract/deep/leaf.py": "far down",
        "src/forebay": "the only door",
        "src/forebay/cli.py": "",
        "Makefile": "",
    }


def test_the_parser_refuses_a_line_that_is_no_entry() -> None:
    with pytest.raises(ValueError, match="no entry of a tree"):
        parse("```\nforebay/\n├─ contract/\n```\n")


def test_a_readme_without_a_tree_has_no_entries() -> None:
    assert parse("# Forebay\n```sh\nmake demo\n```\n") == {}
