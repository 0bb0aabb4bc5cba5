"""Every block of README and docs/ is run, read, or says why not; and how pages are read and compared."""

import configparser
import json
import re
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from support.pages import FILE, PAGES, ROOT, RUNNABLE, one_start, read_blocks, same

PARSERS: dict[str, Callable[[str], Any]] = {
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": lambda text: list(yaml.safe_load_all(text)),
    "ini": lambda text: configparser.ConfigParser(strict=False, interpolation=None).read_string(text),
}


def faults(page: str) -> list[str]:
    found = []
    blocks, fences = (
        read_blocks(page),
        re.findall(r"^[ >]*```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE),
    )
    if len(fences) != 2 * len(blocks):
        found.append(f"{page}: {len(blocks)} blocks are read, of {len(fences)} fences")
    for block in blocks:
        where = f"{page}:{block.line}"
        if block.reason is not None:
            if block.kind not in RUNNABLE or not block.reason.strip():
                found.append(f"{where}: 'not run' is for a block that could run, and gives a reason")
        elif block.kind in ("sh", "bash", "shell"):
            found.append(f"{where}: make it a console block, or say '<!-- not run: REASON -->' above it")
        elif block.kind == "console" and not block.body.startswith("$ "):
            found.append(f"{where}: a console block opens with '$ ' and a command")
        elif block.kind in PARSERS and not FILE.match(block.body):
            try:
                PARSERS[block.kind](block.body)
            except (ValueError, yaml.YAMLError, configparser.Error) as error:
                found.append(f"{where}: not {block.kind}: {error}")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_parsed_or_says_why_not(page: str) -> None:
    assert not faults(page), "\n".join(faults(page))


def test_pages_that_share_a_stack_start_it_with_what_each_allows() -> None:
    starts = ["FOREBAY_ALLOWED_PYTHON_MODELS=a forebay up --detach", "forebay up --detach", "forebay models list"]
    other = "FOREBAY_ALLOWED_PYTHON_MODELS=b.c forebay up --detach"
    assert one_start([*starts, other]) == "FOREBAY_ALLOWED_PYTHON_MODELS=a,b.c forebay up --detach"


def test_pages_that_start_a_stack_differently_cannot_share_one() -> None:
    with pytest.raises(AssertionError, match="start it differently"):
        one_start(["forebay up --detach", "FOREBAY_API_TOKEN=x forebay up --detach"])


@pytest.mark.parametrize(
    ("shown", "printed", "verdict"),
    [
        ("took  3 ms", "took 1.25 s", True),
        ("a\n…\nz", "a\nb\nc\nz", True),
        ("in …", "in /tmp/x\n", True),
        ("1626 of 1797 are right", "1625 of 1797 are right", False),
        ("a\nz", "a\nb\nz", False),
        ("", "Traceback", False),
        ("ID 01a20438b9f0770493acbf0b763a0470", "ID  01a20438b9f07703b5bf420d38c868e2", True),
    ],
)
def test_only_what_varies_may_differ(shown: str, printed: str, verdict: bool) -> None:
    assert same(shown, printed) is verdict
