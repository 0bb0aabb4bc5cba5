"""A client that was opened before its process forked, as under gunicorn --preload: it serves the parent and the child."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from support.worker_stack import WorkerStack

PROGRAM = """
import json, os, threading
from forebay import Client

client = Client()
before = client.predict("doubler", 1)
waiting = threading.Thread(target=before.result)  # in the parent, while it forks
waiting.start()
for _ in range(2):
    if os.fork() == 0:
        jobs = client.predict_many("doubler", range(20))
        many = [client.predict("doubler", n).result(60) for n in range(5)]
        results = [before.result(60), [job.result(60) for job in jobs], many, client.models.get("doubler").version]
        os.write(1, json.dumps(results).encode() + b"\\n")
        os._exit(0)
for _ in range(2):
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
waiting.join(60)
jobs = client.predict_many("doubler", range(20))
print(json.dumps([before.result(60), [job.result(60) for job in jobs]]), flush=True)
client.close()
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_client_opened_before_a_fork_serves_parent_and_children(
    kind: str, tmp_path: Path, broker: str, request: pytest.FixtureRequest
) -> None:
    database = request.getfixturevalue("postgres_database") if kind == "postgres" else None
    with closing(WorkerStack(tmp_path, broker, database)) as stack:
        stack.model("Doubler")
        stack.worker().ready()
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROGRAM], env=os.environ | stack.settings.as_environment(),
            cwd=tmp_path, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    *children, parent = map(json.loads, ran.stdout.splitlines())
    doubled = [2 * n for n in range(20)]
    assert children == [[2, doubled, doubled[:5], 1]] * 2
    assert parent == [2, doubled]
