"""`forebay demo` on this machine, from nothing to its tables."""

import os
import subprocess
from pathlib import Path

import psutil
import pytest

from support.user import FOREBAY, User


@pytest.mark.timeout(600)
def test_the_demo_succeeds_and_leaves_no_process_and_no_folder_behind(somebody: User, tmp_path: Path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    before = {process.pid for process in psutil.process_iter()}
    env = {name: value for name, value in somebody.environment.items() if not name.startswith("FOREBAY_")}
    done = subprocess.run(
        [*FOREBAY, "demo"],
        cwd=tmp_path, env=env | {"TMPDIR": str(temporary)}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "360 succeeded" in done.stdout
    assert "202 succeeded" in done.stdout
    assert done.stdout.count("yes, every one") == 2
    assert "forebay up --detach" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert [path.name for path in temporary.iterdir() if path.name.startswith("forebay")] == []
    assert [p.pid for p in psutil.process_iter() if p.pid not in before and _home(p).startswith(str(temporary))] == []


def _home(process: psutil.Process) -> str:
    try:
        return process.environ().get("FOREBAY_HOME", "") + os.sep
    except psutil.Error:
        return ""
