"""A Redis that can be reached and refuses: the worker process survives in place, and works again once it is let."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from support.servers import ValkeyServer
from support.waiting import wait_until
from support.worker_stack import WorkerStack


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    """One worker that has to outlive every test of this module."""
    stack = open_stack()
    stack.model("Doubler")
    stack.worker().ready()
    return stack


@pytest.fixture
def connection(stack: WorkerStack) -> Iterator[redis.Redis]:
    """A stranger's connection. Afterwards the same worker with the same child has to do a job."""
    (worker,) = stack.workers
    children = worker.children()
    with redis.Redis.from_url(stack.settings.broker) as connection:
        yield connection
    assert stack.client.predict("doubler/1", 21).result(60) == 42
    assert worker.alive
    assert worker.children() == children
    assert "Unrecoverable" not in worker.said()


KEYS = ["cpu", "cpu:3", "cpu:9", "_kombu.binding.celery.pidbox"]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_a_wrong_type_is_renamed_and_stops_nobody(
    stack: WorkerStack, connection: redis.Redis, key: str
) -> None:
    connection.delete(key)
    connection.set(key, "a stranger's")
    jobs = [stack.client.predict("doubler/1", n, priority=n % 10) for n in range(20)]
    assert [job.result(60) for job in jobs] == [2 * n for n in range(20)]
    if not key.startswith("_kombu"):  # which is met at the next connection only
        wait_until(lambda: connection.type(key) != b"string", "the key is renamed")
        assert connection.get(f"forebay.misplaced.{key}") == b"a stranger's"


def test_a_worker_starts_beside_keys_of_a_wrong_type(own: WorkerStack) -> None:
    with redis.Redis.from_url(own.settings.broker) as connection:
        for key in KEYS:
            connection.set(key, "a stranger's")
        connection.set("_kombu.binding_permanent.celery.pidbox", "a stranger's")
        own.model("Doubler")
        worker = own.worker().ready()
        assert own.client.predict("doubler/1", 21).result(60) == 42
        assert worker.alive


def read_only(connection: redis.Redis, server: ValkeyServer, folder: Path) -> Callable[[], object]:
    connection.replicaof("127.0.0.1", 1)
    return lambda: connection.replicaof("NO", "ONE")


def without_replicas(connection: redis.Redis, server: ValkeyServer, folder: Path) -> Callable[[], object]:
    connection.config_set("min-replicas-to-write", 1)
    return lambda: connection.config_set("min-replicas-to-write", 0)


def without_disk(connection: redis.Redis, server: ValkeyServer, folder: Path) -> Callable[[], object]:
    """MISCONF: the last snapshot could not be written. Even a PING is refused then."""
    snapshot = Path(str(connection.config_get("dir")["dir"])) / "dump.rdb"
    (snapshot / "in the way").mkdir(parents=True)
    connection.config_set("save", "3600 1")
    connection.bgsave()
    wait_until(lambda: connection.info("persistence")["rdb_last_bgsave_status"] == "err", "a snapshot fails")
    return lambda: connection.config_set("save", "")


def without_rights(connection: redis.Redis, server: ValkeyServer, folder: Path) -> Callable[[], object]:
    connection.execute_command("ACL", "SETUSER", "default", "-brpop")
    return lambda: connection.execute_command("ACL", "SETUSER", "default", "+brpop")


REFUSALS = [read_only, without_replicas, without_disk, without_rights]


@pytest.mark.parametrize("refuse", REFUSALS)
def test_a_redis_that_refuses_writing_is_an_outage_that_passes(
    stack: WorkerStack,
    connection: redis.Redis,
    server: ValkeyServer,
    tmp_path: Path,
    refuse: Callable[..., Callable[[], object]],
) -> None:
    (worker,) = stack.workers
    told = worker.said().count("event=broker_unreachable"), worker.said().count("event=broker_connected")
    allow = refuse(connection, server, tmp_path)
    wait_until(lambda: worker.said().count("event=broker_unreachable") == told[0] + 1, "the outage is told")
    jobs = [stack.client.predict("doubler/1", n) for n in range(5)]
    allow()
    assert [job.result(60) for job in jobs] == [2 * n for n in range(5)]
    wait_until(lambda: worker.said().count("event=broker_connected") == told[1] + 1, "its end is told")
    assert worker.said().count("event=broker_unreachable") == told[0] + 1


def test_a_full_redis_is_emptied(stack: WorkerStack, connection: redis.Redis) -> None:
    stack.model("Recorder")
    stack.hold()
    stack.client.predict("recorder/1", {"n": 0})
    stack.wait_until_held()
    jobs = [stack.client.predict("recorder/1", {"n": n}) for n in range(1, 60)]
    connection.config_set("maxmemory", 1)
    stack.go_on()
    try:
        wait_until(lambda: not connection.exists("cpu", "cpu:3"), "all messages were taken")
    finally:
        connection.config_set("maxmemory", 0)
    assert [job.result(60) for job in jobs] == list(range(1, 60))
    assert len(stack.runs()) == len(set(stack.runs()))
