"""A worker that is killed in the middle of its work, and one that takes over: every job ends, each once."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay import Client, JobState
from support.user import TIMEOUT_S, User, alive, end, family, running
from support.waiting import wait_until

JOBS = 500


@pytest.fixture
def user(tmp_path: Path, broker: str) -> User:
    """Somebody with a queue and a ledger, and no worker."""
    user = User(tmp_path, {"FOREBAY_BROKER": broker})
    user.ok("db", "upgrade")
    return user


@pytest.fixture
def client(user: User) -> Iterator[Client]:
    with user.client() as client:
        yield client


def runs(user: User) -> Counter[int]:
    """How often each row was executed, as the model wrote it down."""
    return Counter(int(line.split()[1]) for line in (user.folder / "runs.txt").read_text().splitlines())


def test_all_jobs_end_once_after_the_worker_was_killed_while_they_waited(user, client):
    model = client.models.register(
        "recorder", runtime="python", options={"class": "support.models:Recorder"}, max_batch_size=8
    )
    with running(user, "worker", "--queues", "cpu") as first:
        before = client.predict_many(model.ref, [{"n": JOBS + n} for n in range(20)])
        assert [job.result(TIMEOUT_S) for job in before] == [JOBS + n for n in range(20)]
        (user.folder / "hold").touch()  # from now on no row comes through
        jobs = client.predict_many(model.ref, [{"n": n} for n in range(JOBS)])
        wait_until(lambda: client.jobs(state="running", limit=1), "the worker has begun", TIMEOUT_S)
        everything = family(first.pid)
        assert len(everything) >= 3, "supervisor, worker, child"
        end(everything)
        first.wait(120)
    assert alive(everything) == []
    at_the_kill = {info.id: info.state for info in client.jobs(limit=JOBS)}
    assert set(at_the_kill.values()) == {JobState.RUNNING, JobState.QUEUED}, "some were being run, the rest waited"
    (user.folder / "hold").unlink()

    with running(user, "worker", "--queues", "cpu"):
        assert [job.result(TIMEOUT_S) for job in jobs] == list(range(JOBS))

    ended = {info.id: info for info in client.jobs(limit=JOBS)}
    assert set(ended) == {job.id for job in jobs}
    assert {info.state for info in ended.values()} == {JobState.SUCCEEDED}
    attempts = {id: info.attempt for id, info in ended.items()}
    expected = {id: 2 if state is JobState.RUNNING else 1 for id, state in at_the_kill.items()}
    assert attempts == expected, "only what was running when the worker was killed was started a second time"
    assert runs(user) == dict.fromkeys(range(JOBS + 20), 1), "the killed worker had run none of these rows"
    assert {job.info().attempt for job in before} == {1}
