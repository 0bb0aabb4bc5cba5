"""schemathesis holds the server to its own /openapi.json: no 500, no answer that is not described."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from forebay.contract.model import ModelVersion
from forebay.contract.settings import Settings
from forebay.contract.signature import Signature
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.registry import ModelRegistry
from support.api import running_api

TESTS = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("examples", "cases"),
    [pytest.param("2", 40, id="a few"), pytest.param("60", 2000, id="thousands", marks=pytest.mark.slow)],
)
def test_nothing_it_sends_gets_an_answer_that_is_not_described(
    sqlite_ledger: Ledger, tmp_path: Path, examples: str, cases: int
) -> None:
    ModelRegistry(sqlite_ledger).register(ModelVersion("m", 0, "python", "", "none", 0, Signature()))
    given = {"HOME": str(tmp_path / "home"), "DATABASE": sqlite_ledger.url, "BROKER": "redis://127.0.0.1:1/0"}
    with running_api(Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})) as api:
        ran = subprocess.run(
            [
                str(Path(sys.executable).parent / "schemathesis"), "run", f"http://127.0.0.1:{api.port}/openapi.json",
                "--phases", "coverage,fuzzing,stateful", "--max-examples", examples, "--seed", "1",
                "--generation-database", "none",
                "--exclude-checks", "positive_data_acceptance",  # a schema does not tell every rule
            ],
            env=os.environ | {"SCHEMATHESIS_HOOKS": "support.schemathesis_hooks", "PYTHONPATH": str(TESTS)}, cwd=tmp_path,
            capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-5000:]
    told = re.search(r"Test cases:\s+([\d,]+) generated", ran.stdout)
    assert told is not None, ran.stdout[-1000:]
    assert int(told[1].replace(",", "")) >= cases
    assert "Stateful" in ran.stdout
