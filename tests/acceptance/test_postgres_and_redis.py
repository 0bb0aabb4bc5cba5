"""The same script on the embedded stack, and on PostgreSQL and a Valkey of its own: two environment variables differ."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from support.servers import ValkeyServer
from support.servers import running as running_server
from support.user import TIMEOUT_S, User, running
from support.waiting import wait_until

SCRIPT = Path(__file__).parents[2] / "examples" / "main_job.py"


@pytest.fixture
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with running_server(ValkeyServer(tmp_path_factory.mktemp("redis"), append_only=True)) as server:
        yield server


def run_script(user: User) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        cwd=user.folder, env=user.environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    assert told.pop("per_second")
    return told


EXPECTED = {"model": "main-job/1", "jobs": 2000, "succeeded": 2000, "equal": 2000, "in_ledger": 2000}


def test_the_script_is_green_on_the_embedded_stack(user):
    assert run_script(user) == EXPECTED


@pytest.mark.postgres
def test_the_same_script_is_green_on_postgresql_and_redis(tmp_path, postgres_database, own_valkey):
    address = postgres_database.replace("postgresql+psycopg://", "postgresql://", 1)  # as users write it
    user = User(tmp_path, {"FOREBAY_DATABASE": address, "FOREBAY_BROKER": own_valkey.url})
    assert "is at revision" in user.ok("db", "upgrade")
    assert user.json("status")["stack"] is None
    with running(user, "worker", "--queues", "cpu") as worker:
        wait_until(lambda: "child_ready" in user.said("worker"), "the worker is ready", TIMEOUT_S)
        assert run_script(user) == EXPECTED
        worker.terminate()
        assert worker.wait(TIMEOUT_S) == 0
    with psycopg.connect(address) as connection:
        found = connection.execute("SELECT state, attempt, count(*) FROM jobs GROUP BY state, attempt").fetchall()
    assert found == [("succeeded", 1, 2001)]
    assert user.json("status")["workers"] == []
    assert not (user.home / "ledger.db").exists()
