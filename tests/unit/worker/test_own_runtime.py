"""The package of docs/how-to/write-a-runtime.md is built, and serves a row."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from forebay.contract.runtimes import installed_runtimes
from forebay.worker.runtimes import get_runtime
from support.networks import version
from support.pages import FILE, read_blocks


def test_the_package_of_the_page_makes_a_worker_serve_its_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = read_blocks("docs/how-to/write-a-runtime.md")
    (tmp_path / "my_runtimes").mkdir()
    (tmp_path / "my_runtimes" / "__init__.py").write_text(next(b.body for b in blocks if FILE.match(b.body)), "utf-8")
    (tmp_path / "pyproject.toml").write_text(next(b.body for b in blocks if b.kind == "toml"), "utf-8")
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    made = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True, text=True)
    ZipFile(tmp_path / made.stdout.split()[-1]).extractall(tmp_path / "installed")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    assert "word-weights" in installed_runtimes()  # what a worker reports to the ledger
    weights = tmp_path / "weights.json"
    weights.write_text('{"good": 1.0, "bad": -1.0}', encoding="utf-8")
    model = get_runtime("word-weights").load(weights, "cpu", version("word-weights"))
    assert model.predict([{"text": "good good bad"}]) == [1.0]
