"""CONTRIBUTING's exercise, done: a kind of job is added to a copy of the tree, and runs through client, worker and command."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.user import TIMEOUT_S, User, refusal

ROOT = Path(__file__).parents[2]
PARTS = ("contract", "datasets", "storage", "producer", "worker", "dashboard", "api")
BLOCK = re.compile(
    r"```python\n# (?P<file>[\w/.]+?)(?:, (?P<where>above|below): (?P<line>[^\n]+))?\n(?P<text>.*?)```", re.DOTALL
)
FROM_PYTHON = """
import sys
from forebay import Client, InvalidInput

with Client() as client:
    job = client.echo("doubles", "hello", times=2, metadata={"run": 1})
    assert job.result(%d) == ["hello", "hello"]
    assert (job.info().kind, job.info().attempt) == ("echo", 1)
    assert client.jobs(kind="echo", metadata={"run": 1})[0].id == job.id
    try:
        client.echo("doubles", "hello", times=0)
    except InvalidInput as error:
        print(error)
"""


def blocks() -> list[re.Match[str]]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    _, _, exercise = text.partition("## Adding a kind of job\n")
    return list(BLOCK.finditer(exercise.partition("\n## ")[0]))


def apply(block: re.Match[str], tree: Path) -> None:
    """Make a file of the block, or put it above or below the line that it names."""
    path = tree / block["file"]
    if block["where"] is None:
        assert not path.exists()
        path.write_text(block["text"], encoding="utf-8")
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    [at] = [i for i, line in enumerate(lines) if block["line"] in line]
    lines.insert(at if block["where"] == "above" else at + 1, block["text"])
    path.write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with the exercise done."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in (*PARTS, "src"):
        shutil.copytree(
            ROOT / folder, tree / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for block in blocks():
        apply(block, tree)
    return tree


@pytest.fixture(scope="module")
def contributor(tree: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: pytest.MonkeyPatch) -> User:
    """Somebody whose `forebay` is that tree."""
    monkeypatch_module.setenv("PYTHONPATH", str(tree / "src"))
    return User(tmp_path_factory.mktemp("contributor"))


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_a_new_kind_costs_one_short_file_a_request_a_method_and_a_command() -> None:
    new = {block["file"]: block["text"].count("\n") for block in blocks() if block["where"] is None}
    assert list(new) == ["contract/requests/echo.py", "worker/kinds/echo.py", "producer/cli/echo.py"]
    assert max(new.values()) < 80
    changed = sum(block["text"].count("\n") for block in blocks() if block["where"] is not None)
    assert changed < 20


def test_it_runs_from_python_and_from_the_shell(contributor: User) -> None:
    with contributor.up("--no-dashboard", "--no-api", "--queues", "cpu"):
        contributor.ok(
            "models", "register", "doubles", "--runtime", "python", "--option", "class=support.models:Doubler"
        )
        done = subprocess.run(
            [sys.executable, "-c", FROM_PYTHON % TIMEOUT_S],
            env=contributor.environment, cwd=contributor.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "times" in done.stdout
        assert contributor.ok("echo", "doubles", "hello", "--times", "3") == "hello\n" * 3
        assert contributor.json("echo", "doubles", "hello")["result"] == ["hello"]
        assert "times" in refusal(contributor.run("echo", "doubles", "hello", "--times", "0"))
        assert "echo" in contributor.ok("jobs", "list", "--kind", "echo")
