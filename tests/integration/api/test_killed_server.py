"""The server is killed in the middle of submissions: what it answered for is kept, and the same keys give the same jobs."""

import http.client
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.api import ServeCommand, serve_command
from support.waiting import wait_until
from support.worker_stack import WorkerStack

JOBS, SENDERS = 300, 8


def submitted(server: ServeCommand, kill_after: int | None = None) -> dict[int, str]:
    """Submit JOBS numbers on several connections, each with its key; the ids of those that were answered.

    The server is killed at the `kill_after`th answer, while other requests are under way.
    """
    numbers, answered, lock = itertools.count(), dict[int, str](), threading.Lock()

    def send() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        try:
            while (number := next(numbers)) < JOBS:
                body = json.dumps({"model": "recorder", "inputs": {"n": number}})
                connection.request("POST", "/api/v1/jobs", body, {"Idempotency-Key": f"key-{number}"})
                response = connection.getresponse()
                told = json.loads(response.read())
                assert response.status == 202, told
                with lock:
                    answered[number] = told["id"]
                    if len(answered) == kill_after:
                        server.process.kill()
        except (OSError, http.client.HTTPException):
            assert kill_after is not None
        finally:
            connection.close()

    with ThreadPoolExecutor(SENDERS) as senders:
        for sender in [senders.submit(send) for _ in range(SENDERS)]:
            sender.result()
    return answered


def test_a_killed_server_keeps_what_it_answered_for_and_the_same_keys_give_the_same_jobs(
    own: WorkerStack, tmp_path: Path
) -> None:
    own.model("Recorder")
    with serve_command(own.settings, tmp_path / "killed.log") as server:
        answered = submitted(server, kill_after=JOBS // 2)
    stored = {job.id for job in own.client.jobs(limit=10_000)}
    assert JOBS // 2 <= len(answered) < JOBS
    assert set(answered.values()) <= stored

    own.worker()
    with serve_command(own.settings, tmp_path / "again.log") as server:
        again = submitted(server)
    assert answered.items() <= again.items()
    assert stored <= set(again.values()) == {job.id for job in own.client.jobs(limit=10_000)}
    assert len(set(again.values())) == JOBS
    wait_until(lambda: own.states().keys() <= {"succeeded", "failed"}, "each job has ended")
    assert own.states() == {"succeeded": JOBS}
    assert sorted(own.runs()) == list(range(JOBS))
