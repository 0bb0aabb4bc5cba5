"""The examples of the pages in PAGES, run as a reader would: in order, in one folder, against a stack of its own.

A ```console block holds commands, each after `$ ` and followed by what it prints; `forebay` is PYTHON's, and `curl` the only
other one. A ```python block is a program; all of a page share one namespace, and a ```text block right behind one is what it
prints. One that opens with `# file: NAME` is saved under that name instead; one right below `<!-- not run: REASON -->` is
passed over. A ```sh block is set-up that is not run here, and no
`forebay` command may hide in one. What is printed must be what the page shows, but for what VARY names, for how wide the
columns of a table are, and for what the page leaves out with `…`. A command fails where the page shows its error, else not.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from forebay.contract.settings import STACK_FILE

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md", "docs/how-to/call-a-model.md", "docs/how-to/models.md", "docs/how-to/bring-your-model.md",
    "docs/how-to/language-models.md", "docs/learn/train-a-model.md", "docs/learn/coming-from.md",
)  # fmt: skip
FENCE = re.compile(
    r"^(?P<marked><!-- not run: .+ -->\n)?```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
FILE = re.compile(r"# file: (\S+)\n")
PYTHON = os.environ.get("README_PYTHON", sys.executable)  # CI names that of a venv with nothing but the wheel
FOREBAY = [PYTHON, "-m", "forebay"]
COMMAND_S = 300  # one of them trains

# What differs from run to run. Each match is replaced by its name, on the page as in what was printed.
VARY = {
    "CHECKSUM": r"\bsha256:[0-9a-f]{64}\b",
    "ID": r"\b[0-9a-f]{32}\b",
    "TIME": r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[+-]\d\d:\d\d)?",
    "DURATION": r"\b\d+(?:\.\d+)? m?s\b|\b\d+[dhm] \d+[hms]\b",
    "SIZE": r"\b\d+(?:\.\d+)? [KM]iB(?=\)| +\d+ )",  # of an artifact: torch's archives differ by a few bytes
    "PORT": r"(?<=127\.0\.0\.1:)\d+",
    "WORKER": r"\b(?:cpu|gpu\d+|train)@[\w.-]+",
}

# Runs the programs whose file names it reads from stdin, in one namespace, and says END after each.
END = "-- end of the program --"
INTERPRETER = f"""
import sys, traceback
space = {{"__name__": "__main__"}}
for name in map(str.strip, sys.stdin):
    try:
        exec(compile(open(name, encoding="utf-8").read(), name, "exec"), space)
    except BaseException:
        traceback.print_exc()
    print({END!r}, flush=True)
"""


@dataclass(frozen=True)
class Example:
    """One command line or one program, and what its page says that it prints."""

    page: str
    line: int
    kind: str
    code: str
    shown: str


def read_page(page: str) -> list[Example]:
    """Everything to run on a page, in order; a command of a console block is an example of its own."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = list(FENCE.finditer(text))
    found: list[Example] = []
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        line = text.count("\n", 0, block.start()) + 2
        if block["kind"] == "console":
            found += _commands(page, line, block["body"])
        elif block["kind"] == "python" and not block["marked"]:
            behind = following is not None and not text[block.end() : following.start()].strip()
            shown = following["body"] if following is not None and behind and following["kind"] == "text" else ""
            found.append(Example(page, line, "python", block["body"], shown))
    return found


def _commands(page: str, line: int, body: str) -> Iterator[Example]:
    assert body.startswith("$ "), f"{page}:{line}: a console block opens with a command"
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield Example(page, line, "console", command, shown)
        line += part.count("\n")


def same(shown: str, printed: str) -> bool:
    """Whether the page shows what was printed, by the rule at the top of this file."""
    pattern = ".*".join(map(re.escape, plain(shown).split("…")))
    return re.fullmatch(pattern, plain(printed), flags=re.DOTALL) is not None


def plain(text: str) -> str:
    """Text with what varies named, and every run of spaces as one."""
    for name, pattern in VARY.items():
        text = re.sub(pattern, name, text)
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


class Reader:
    """Somebody who follows a page in a folder of their own, with nothing of Forebay's in their environment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("FOREBAY_")}

    def follow(self, examples: list[Example]) -> dict[Example, tuple[int, str]]:
        """Run all in order; the exit status and what was printed, stdout and stderr together."""
        command = [PYTHON, "-c", INTERPRETER]
        with subprocess.Popen(
            command, cwd=self._folder, env=self._env, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as interpreter:  # fmt: skip
            return {example: self._run(example, interpreter) for example in examples}

    def stop(self) -> None:
        """End the stack of this folder, if there is one."""
        self._command("forebay down")

    def _run(self, example: Example, interpreter: subprocess.Popen[str]) -> tuple[int, str]:
        if example.kind == "console":
            return self._command(example.code)
        saved = FILE.match(example.code)
        path = self._folder / (saved[1] if saved else f"line_{example.line}")
        path.parent.mkdir(exist_ok=True)
        path.write_text(example.code, encoding="utf-8")
        return (0, "") if saved else (0, _execute(path.name, interpreter))

    def _command(self, line: str) -> tuple[int, str]:
        words = shlex.split(line)
        program = next(word for word in words if word in ("forebay", "curl"))
        given = [words.pop(0).partition("=") for _ in range(words.index(program))]
        env = self._env | {name: value for name, _, value in given}
        if program == "curl":  # the page's port may have been taken
            api = json.loads((self._folder / ".forebay" / STACK_FILE).read_text("utf-8"))["api"]
            words = [word.replace("http://127.0.0.1:8000", api) for word in words]
        done = subprocess.run(
            [*(FOREBAY if program == "forebay" else ["curl"]), *words[1:]],
            cwd=self._folder, env=env, text=True, timeout=COMMAND_S, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout


def _execute(name: str, interpreter: subprocess.Popen[str]) -> str:
    assert interpreter.stdin is not None
    assert interpreter.stdout is not None
    interpreter.stdin.write(f"{name}\n")
    interpreter.stdin.flush()
    return "".join(iter(interpreter.stdout.readline, f"{END}\n"))


EXAMPLES = {page: read_page(page) for page in PAGES}
QUICKSTART = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
EXAMPLES["README.md"].append(
    Example("examples/quickstart.py", 1, "python", QUICKSTART, "the first image shows a 0\n…\n1626 of 1797 are right\n")
)


@pytest.fixture(scope="module", params=PAGES)
def followed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[Example, tuple[int, str]]:
    """What the examples of a page printed."""
    reader = Reader(tmp_path_factory.mktemp("reader"))
    try:
        return reader.follow(EXAMPLES[request.param])
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


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_examples_of_both_kinds(page: str) -> None:
    assert {e.kind for e in read_page(page)} == {"console", "python"}


@pytest.mark.parametrize("page", PAGES)
def test_no_forebay_command_hides_in_a_block_that_is_not_run(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [block["body"] for block in FENCE.finditer(text) if block["kind"] in ("sh", "bash", "shell")]
    assert [body for body in blocks if re.search(r"^(\w+=\S+ )*forebay ", body, re.MULTILINE)] == []


def test_the_quickstart_uses_the_public_door_only() -> None:
    assert re.findall(r"^(?:from|import) (forebay\S*)", QUICKSTART, re.MULTILINE) == ["forebay"]


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
