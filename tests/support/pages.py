"""The blocks of README and of the pages of docs/, and a reader who runs them.

A ```console block holds commands, each after `$ ` and followed by what it prints. A ```python block is a program; all of a
page share one namespace, and a ```text block right behind one is what it prints. A block that opens with `# file: NAME` is
saved under that name instead. A block of a RUNNABLE kind that is not run says why on the line above it:
`<!-- not run: REASON -->`.
"""

import json
import os
import re
import subprocess
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from forebay.contract.settings import STACK_FILE

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
RUNNABLE = ("console", "python", "sh", "bash", "shell")
BLOCK = re.compile(
    r"^(?:[ >]*<!-- not run:(?P<reason>[^\n]*)-->\n)?(?P<indent> *)```(?P<kind>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
FILE = re.compile(r"# file: ([^/\s]\S*)\n")  # below the folder; an absolute path is of the reader's machine
UP = re.compile(r"^(?P<settings>(?:FOREBAY_\w+=\S+ )*)forebay up --detach(?P<flags>.*)$")
DOWN = "forebay down"
API = "127.0.0.1:8000"
LISTS = (
    "FOREBAY_ALLOWED_PYTHON_MODELS",
    "FOREBAY_ALLOWED_HOSTS",
    "FOREBAY_ALLOWED_ENDPOINTS",
)  # settings that pages on one stack may each add to

# What differs from run to run. Each match is replaced by its name, on the page as in what was printed.
VARY = {
    "CHECKSUM": r"\bsha256:[0-9a-f]{64}\b",
    "ID": r"\b[0-9a-f]{32}\b",
    "TIME": r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?(?:[+-]\d\d:\d\d)?",
    "DURATION": r"\b\d+(?:\.\d+)? m?s\b|\b\d+[dhm] \d+[hms]\b",
    "SIZE": r"\b\d+(?:\.\d+)? [KM]iB(?=\)| +\d+ )",  # of an artifact: torch's archives differ by a few bytes
    "PORT": r"(?<=127\.0\.0\.1:)\d+",
    "WORKER": r"\b(?:cpu|gpu\d+|train)@[\w.-]+",
}

# Both run what they read from stdin and say END, an exit status and a newline after each.
END = "-- end of the example --"
INTERPRETER = f"""
import sys, traceback
for name in map(str.strip, sys.stdin):
    if not name:  # a new page
        space = {{"__name__": "__main__"}}
        continue
    try:
        exec(compile(open(name, encoding="utf-8").read(), name, "exec"), space)
    except BaseException:
        traceback.print_exc()
    print({END!r}, 0, flush=True)
"""
SHELL_COMMAND = "{{ {code}\n}} 2>&1 </dev/null; echo '{end}' $?\n"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `reason` is why it is not run, None where nothing is said."""

    page: str
    line: int
    kind: str
    body: str
    reason: str | None
    shown: str


@dataclass(frozen=True)
class Example:
    """One command line or one program, and what its page says that it prints."""

    page: str
    line: int
    kind: str
    code: str
    shown: str


def read_blocks(page: str) -> list[Block]:
    """Every block of a page, in order; a page that runs nothing has them too."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    blocks = []
    for block, following in zip_longest(found, found[1:]):
        behind = following is not None and not text[block.end() : following.start()].strip()
        shown = textwrap.dedent(following["body"]) if following and behind and following["kind"] == "text" else ""
        line = text.count("\n", 0, block.start("kind")) + 2
        blocks.append(Block(page, line, block["kind"], textwrap.dedent(block["body"]), block["reason"], shown))
    return blocks


def read_examples(page: str) -> list[Example]:
    """Everything to run on a page, in order; a command of a console block is an example of its own."""
    found: list[Example] = []
    for block in read_blocks(page):
        if block.reason is not None:
            continue
        if block.kind == "console":
            found += _commands(block)
        elif block.kind == "python" or FILE.match(block.body):
            found.append(Example(page, block.line, "python", block.body, block.shown))
    return found


def _commands(block: Block) -> Iterator[Example]:
    assert block.body.startswith("$ "), f"{block.page}:{block.line}: a console block opens with a command"
    line = block.line
    for part in re.split(r"^\$ ", block.body, flags=re.MULTILINE)[1:]:
        command, _, shown = part.replace("\\\n", "\0").partition("\n")
        yield Example(block.page, line, "console", command.replace("\0", "\\\n"), shown.replace("\0", "\\\n"))
        line += part.count("\n")


def same(shown: str, printed: str) -> bool:
    """Whether the page shows what was printed, but for what VARY names, the width of columns, and what `…` leaves out."""
    pattern = ".*".join(map(re.escape, plain(shown).split("…")))
    return re.fullmatch(pattern, plain(printed), flags=re.DOTALL) is not None


def plain(text: str) -> str:
    """Text with what varies named, and every run of spaces as one."""
    for name, pattern in VARY.items():
        text = re.sub(pattern, name, text)
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


class Reader:
    """Somebody who follows pages one after the other in a folder of their own, with nothing of Forebay's set.

    Pages that start a stack share it: the first `forebay up --detach` starts it with what the settings in LISTS are on all
    pages, and the others show what it printed.
    """

    def __init__(self, folder: Path, python: str) -> None:
        self._folder = folder
        env = {name: value for name, value in os.environ.items() if not name.startswith("FOREBAY_")}
        env["PATH"] = f"{Path(python).parent}{os.pathsep}{env['PATH']}"
        self._interpreter, self._shell = (
            subprocess.Popen(
                command, cwd=folder, env=env, text=True, bufsize=1,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            ) for command in ([python, "-c", INTERPRETER], ["bash"])
        )  # fmt: skip
        self._up: tuple[int, str] | None = None

    def follow(self, pages: Sequence[list[Example]]) -> dict[Example, tuple[int, str]]:
        """Run all in order; the exit status and what was printed, stdout and stderr together."""
        up = one_start([example.code for page in pages for example in page if example.kind == "console"])
        printed: dict[Example, tuple[int, str]] = {}
        for page in pages:
            _send(self._interpreter, "\n")
            printed |= {example: self._run(example, up) for example in page}
        return printed

    def stop(self) -> None:
        """End the stack of this folder, if there is one, and what ran the examples."""
        self._in_shell(DOWN)
        for process in (self._shell, self._interpreter):
            process.communicate()

    def _run(self, example: Example, up: str) -> tuple[int, str]:
        if example.kind == "console":
            if UP.match(example.code):
                self._up = self._up or self._in_shell(up)
                return self._up
            if example.code == DOWN:
                self._up = None
            return self._in_shell(self._with_address(example.code))
        code = self._with_address(example.code)
        saved = FILE.match(code)
        name = saved[1] if saved else f"{Path(example.page).stem}_line_{example.line}"
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding="utf-8")
        return (0, "") if saved else _answer(self._interpreter, f"{name}\n")

    def _with_address(self, code: str) -> str:
        """The pages' port may have been taken."""
        if self._up is None or API not in code:
            return code
        address = json.loads((self._folder / ".forebay" / STACK_FILE).read_text("utf-8"))["api"]
        return code.replace(API, str(address).removeprefix("http://"))

    def _in_shell(self, command: str) -> tuple[int, str]:
        return _answer(self._shell, SHELL_COMMAND.format(code=command, end=END))


def one_start(commands: Sequence[str]) -> str:
    """The `forebay up` that serves all these commands: each of LISTS is joined, all else must be the same."""
    starts = [found for command in commands if (found := UP.match(command))]
    if not starts:
        return ""
    lists: dict[str, list[str]] = {}
    rests = set()
    for start in starts:
        given = dict(word.split("=", 1) for word in start["settings"].split())
        for name in LISTS:
            lists.setdefault(name, []).extend(filter(None, [given.pop(name, "")]))
        rests.add((tuple(given.items()), start["flags"]))
    assert len(rests) == 1, f"pages that share a stack start it differently: {sorted(rests)}"
    ((settings, flags),) = rests
    joined = [(name, ",".join(dict.fromkeys(values))) for name, values in lists.items() if values]
    words = [f"{name}={value}" for name, value in [*settings, *joined]]
    return " ".join([*words, f"forebay up --detach{flags}"])


def _send(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.flush()


def _answer(process: subprocess.Popen[str], text: str) -> tuple[int, str]:
    _send(process, text)
    assert process.stdout is not None
    printed = ""
    while END not in (line := process.stdout.readline()):
        assert line, f"ended at {text}{printed}"
        printed += line
    before, status = line.split(END)
    return int(status), printed + before
