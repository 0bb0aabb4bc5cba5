"""What an import costs and who may import what: the client stays light, and the linked folders stay linked."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest

import forebay

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("contract", "datasets", "export", "storage", "producer", "worker", "dashboard", "api")
HEAVY = (
    "torch",
    "flower",
    "starlette",
    "uvicorn",
    "sentence_transformers",
    "transformers",
    "sklearn",
    "scipy",
    "pyarrow",
)
NOT_IN_THE_CLIENT = {"torch", "sqlalchemy", "flower", "starlette", "uvicorn"}

HELP = """
import sys
sys.argv = ["forebay", "--help"]
from forebay.cli.root import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def loaded_by(program: str) -> set[str]:
    """The top-level names in sys.modules after a fresh interpreter ran the program."""
    tell = "\nimport json, sys\nprint()\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program + tell], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def imported(path: Path) -> Iterator[str]:
    """The top-level name of every import in the file, those inside functions and `if TYPE_CHECKING` included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("import forebay", id="import"),
        pytest.param("from forebay import *", id="all of it"),
        pytest.param(HELP, id="help"),
    ],
)
def test_the_door_opens_without_the_heavy_libraries(program: str) -> None:
    loaded = loaded_by(program)
    assert "forebay" in loaded
    assert loaded.isdisjoint(HEAVY), sorted(loaded.intersection(HEAVY))


def test_every_public_name_can_be_had_from_the_door() -> None:
    assert "forebay" in loaded_by("import forebay\nassert all(hasattr(forebay, name) for name in forebay.__all__)")


def test_every_public_name_is_described() -> None:
    public = {name: getattr(forebay, name) for name in forebay.__all__}
    methods = {
        f"{name}.{attribute}": value
        for name, owner in public.items()
        for attribute, value in vars(owner).items()
        if not attribute.startswith("_") and isinstance(value, FunctionType | property | classmethod)
    }
    assert [name for name, value in (public | methods).items() if not value.__doc__] == []


@pytest.mark.parametrize("part", ["contract", "producer"])
def test_what_a_client_installs_never_imports_the_workers_libraries(part: str) -> None:
    files = sorted((ROOT / part).rglob("*.py"))
    assert files
    offenders = {str(path.relative_to(ROOT)): NOT_IN_THE_CLIENT.intersection(imported(path)) for path in files}
    assert {path: names for path, names in offenders.items() if names} == {}


def test_every_part_is_linked_to_its_folder_at_the_top() -> None:
    links = {path.name: path.readlink() for path in (ROOT / "src" / "forebay").iterdir() if path.is_symlink()}
    assert links == {part: Path("..", "..", part) for part in PARTS}
    assert all((ROOT / part / "__init__.py").is_file() for part in PARTS)
