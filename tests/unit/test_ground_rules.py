"""Rules of the stack no linter holds: nothing unfinished ships, one reader of the environment, no sleep in tests."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("contract", "datasets", "export", "storage", "producer", "worker", "dashboard", "api", "src/forebay")
TESTS = ("tests/unit", "tests/integration", "tests/acceptance", "tests/support")  # chaos runs against the clock
UNFINISHED = re.compile(r"\b(NotImplementedError|TODO|FIXME|XXX)\b")

# Who besides the settings may read the environment, and why. Setting a variable for a library or a child is no reading.
READERS = {
    "contract/settings.py": "the one reader",
    "worker/runtimes/torch_export.py": "puts torch's weights-only switch back as it was; torch has no other",
    "worker/trainer/rank.py": "torchrun tells its processes by it who they are",
}


def sources(*folders: str) -> list[Path]:
    """The Python files below the folders; rglob does not follow the links of src/forebay, so each comes once."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def reads_of_the_environment(tree: ast.AST) -> Iterator[int]:
    """The lines that read os.environ or call os.getenv; storing and deleting one variable is left out."""
    writes = {
        id(node.value)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load))
        or (isinstance(node, ast.Attribute) and node.attr in ("update", "setdefault"))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "getenvb"):
            if isinstance(node.value, ast.Name) and node.value.id == "os" and id(node) not in writes:
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (node.lineno for alias in node.names if alias.name in ("environ", "environb", "getenv"))


def sleeps(tree: ast.AST) -> Iterator[int]:
    """The lines that call time.sleep, or take sleep out of time."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "sleep":
            if isinstance(node.value, ast.Name) and node.value.id == "time":
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (node.lineno for alias in node.names if alias.name == "sleep")


def test_every_part_has_sources() -> None:
    assert all(sources(folder) for folder in SHIPPED)


def test_nothing_unfinished_ships() -> None:
    found = [
        f"{named(path)}:{number}: {line.strip()}"
        for path in sources(*SHIPPED, "bench", "examples")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if UNFINISHED.search(line)
    ]
    assert found == []


def test_only_the_settings_read_the_environment() -> None:
    found = {named(path): list(reads_of_the_environment(parsed(path))) for path in sources(*SHIPPED)}
    readers = {path: lines for path, lines in found.items() if lines}
    assert {path: lines for path, lines in readers.items() if path not in READERS} == {}
    assert set(READERS) <= set(readers), "an exception that nothing needs any more"


def test_every_module_says_what_it_is_for() -> None:
    assert [named(path) for path in sources(*SHIPPED) if not ast.get_docstring(parsed(path))] == []


def test_no_test_sleeps_to_wait() -> None:
    found = {named(path): list(sleeps(parsed(path))) for path in sources(*TESTS)}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "code", ["os.environ['A']", "x = os.environ.get('A')", "os.getenv('A')", "from os import environ", "f(os.environ)"]
)
def test_a_read_of_the_environment_is_seen(code: str) -> None:
    assert list(reads_of_the_environment(ast.parse(code))) == [1]


@pytest.mark.parametrize("code", ["os.environ['A'] = 'b'", "del os.environ['A']", "os.environ.setdefault('A', 'b')"])
def test_setting_a_variable_is_no_read(code: str) -> None:
    assert list(reads_of_the_environment(ast.parse(code))) == []


@pytest.mark.parametrize("code", ["time.sleep(1)", "from time import sleep"])
def test_a_sleep_is_seen(code: str) -> None:
    assert list(sleeps(ast.parse(code))) == [1]
