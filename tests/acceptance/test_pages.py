"""The examples of README and of docs/, run as readers would: in order, in one folder, against a stack that runs there.

tests/support/pages.py says which blocks are run and how; what is printed must be what the page shows. A command fails where
the page shows its error, else not. The pages of a group share a folder and a stack, so the names of their models must differ.
"""

import os
import re
import sys
from collections.abc import Iterator

import pytest

from support.pages import PAGES, ROOT, Example, Reader, read_examples, same

PYTHON = os.environ.get("PAGES_PYTHON", sys.executable)  # CI names that of a venv with nothing but the wheel
QUICKSTART = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
EXAMPLES = {page: examples for page in PAGES if (examples := read_examples(page))}
EXAMPLES["README.md"].append(
    Example("examples/quickstart.py", 1, "python", QUICKSTART, "the first image shows a 0\n…\n1626 of 1797 are right\n")
)
GROUPS = (
    ("README.md", "docs/learn/quick-start.md", "docs/learn/tutorial.md"),
    ("docs/how-to/bring-your-model.md",),
    (
        "docs/how-to/call-a-model.md", "docs/how-to/models.md", "docs/how-to/language-models.md", "docs/how-to/openai.md",
        "docs/learn/coming-from.md",
    ),
    (
        "docs/how-to/run-a-batch.md", "docs/how-to/signatures.md", "docs/how-to/versions.md",
        "docs/how-to/convert-and-compress.md", "docs/how-to/train.md", "docs/how-to/tune.md", "docs/how-to/evaluate.md",
        "docs/how-to/write-a-recipe.md", "docs/how-to/explain-predictions.md", "docs/how-to/watch-for-drift.md",
        "docs/how-to/http.md", "docs/how-to/open-inference.md",
    ),
    ("docs/how-to/troubleshoot.md", "docs/how-to/back-up-and-upgrade.md"),
)  # fmt: skip


@pytest.fixture(scope="module", params=GROUPS, ids=lambda group: group[0])
def followed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Example, tuple[int, str]]]:
    """What the examples of a group printed."""
    reader = Reader(tmp_path_factory.mktemp("reader"), PYTHON)
    try:
        yield reader.follow([EXAMPLES[page] for page in request.param])
    finally:
        reader.stop()


@pytest.mark.timeout(900)
def test_every_example_prints_what_its_page_shows(followed: dict[Example, tuple[int, str]]) -> None:
    wrong = [
        f"{e.page}:{e.line} {e.code.splitlines()[0]}\n--- shown\n{e.shown}--- printed (status {status})\n{printed}"
        for e, (status, printed) in followed.items()
        if not same(e.shown, printed) or (status != 0) != ("error: " in e.shown)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_page_with_examples_is_followed_once() -> None:
    assert sorted(page for group in GROUPS for page in group) == sorted(EXAMPLES)


def test_the_quickstart_uses_the_public_door_only() -> None:
    assert re.findall(r"^(?:from|import) (forebay\S*)", QUICKSTART, re.MULTILINE) == ["forebay"]
