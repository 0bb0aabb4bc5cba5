"""What strangers may put into Redis: it must neither kill nor stall a real worker, and the next good job still runs."""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from forebay.contract.wire.celery_app import make_app
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import JobMessage, TaskArgs
from support.waiting import wait_until
from support.worker_stack import WorkerStack

IDS = tuple(f"{i:032x}" for i in range(10_000))
PIDBOX = "/0.celery.pidbox"


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    """One worker that has to outlive every test of this module."""
    stack = open_stack()
    stack.model("Doubler")
    stack.model("Recorder")
    stack.worker().ready()
    return stack


@pytest.fixture
def connection(stack: WorkerStack) -> Iterator[redis.Redis]:
    """A stranger's connection. Afterwards the worker must be as it was: same process, same connection, nothing kept."""
    (worker,) = stack.workers
    with redis.Redis.from_url(stack.settings.broker) as connection:
        yield connection
        assert stack.client.predict("doubler/1", 21).result(120) == 42
        wait_until(lambda: not connection.exists("cpu", "unacked", "unacked_index"), "every message is acked")
    assert worker.alive
    assert len(worker.children()) == 1
    assert "onnection to broker lost" not in worker.said()
    assert "Unrecoverable" not in worker.said()


@pytest.fixture
def message(stack: WorkerStack) -> dict[str, Any]:
    """A message as the dispatcher makes them, for the worker's queue, with ids that no job has."""
    app = make_app(stack.settings)
    Dispatcher(app).send(
        [JobMessage("gpu", 5, TaskArgs("doubler", 1, list(IDS[:2]), exclusive=False))]
    )  # a queue that nobody serves
    app.close()
    with redis.Redis.from_url(stack.settings.broker) as connection:
        raw = connection.rpop("gpu:3")
    assert isinstance(raw, bytes)
    message: dict[str, Any] = json.loads(raw)
    message["properties"]["delivery_info"]["routing_key"] = "cpu"
    return message


def body(value: Any) -> str:
    return base64.b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).decode()


def job_message(*args: Any, kwargs: Any = None, **embed: Any) -> list[Any]:
    none = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return [list(args), kwargs or {}, none | embed]


GOOD = ("doubler", 1, list(IDS[:2]), False)

RAW = {
    "an empty list": b"[]",
    "a number": b"5",
    "a string": b'"x"',
    "an empty object": b"{}",
    "null": b"null",
    "no JSON": b"\xff\xfe\x00 nothing",
    "half a message": b'{"body": "',
    "nothing": b"",
    "a mebibyte of garbage": b"\xa5" * 2**20,
    "a mebibyte of JSON": b'{"body": "' + b"A" * 2**20 + b'"}',
    "deep lists": b"[" * 30_000 + b"]" * 30_000,
    "deep objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "a long number": b'{"body": ' + b"9" * 10_000 + b"}",
    "NaN": b'{"body": NaN}',
    "kombu's own types": b'{"__type__": "uuid", "__value__": {"hex": "zz"}}',
}

BODIES = {
    "an empty list": [],
    "a number": 5,
    "null": None,
    "a string": "x",
    "an object": {"task": "forebay.predict", "id": "1", "args": [], "kwargs": {}},
    "no JSON": b"\xff nothing",
    "no bytes": b"",
    "deep lists": b"[" * 20_000,
    "two parts": [[], {}],
    "three wrong parts": [5, 5, 5],
    "no arguments": job_message(),
    "three arguments": job_message(*GOOD[:3]),
    "a list for a name": job_message([], *GOOD[1:]),
    "an unknown model": job_message("no-such-model", *GOOD[1:]),
    "a path for a name": job_message("../../etc", *GOOD[1:]),
    "text for a version": job_message("doubler", "1", *GOOD[2:]),
    "a truth for a version": job_message("doubler", True, *GOOD[2:]),
    "an object for ids": job_message("doubler", 1, {}, False),
    "numbers for ids": job_message("doubler", 1, [1, 2], False),
    "SQL for an id": job_message("doubler", 1, ["'; DROP TABLE jobs; --"], False),
    "10 000 ids": job_message("doubler", 1, list(IDS), False),
    "1000 ids": job_message("doubler", 1, list(IDS[:1000]), False),
    "no ids": job_message("doubler", 1, [], False),
    "one id 256 times": job_message("doubler", 1, [IDS[0]] * 256, False),
    "keyword arguments": job_message(*GOOD, kwargs={"x": 1}),
    "a callback": job_message(*GOOD, callbacks=[{"task": "forebay.predict", "args": [], "kwargs": {}}]),
    "an errback": job_message(*GOOD, errbacks=[5]),
    "a chord": job_message(*GOOD, chord={"task": "celery.chord"}),
    "a chain": job_message(*GOOD, chain=[5]),
}

HEADERS = {
    "an unknown task": {"task": "no.such.task"},
    "clean-up": {"task": "celery.backend_cleanup"},
    "a chord": {"task": "celery.chord"},
    "chord unlock": {"task": "celery.chord_unlock"},
    "a group": {"task": "celery.group"},
    "a list for a task": {"task": []},
    "no task": {"task": None},
    "a list for an id": {"id": []},
    "no id": {"id": None},
    "an eta": {"eta": "2999-01-01T00:00:00+00:00"},
    "a wrong eta": {"eta": "tomorrow"},
    "expiry in the past": {"expires": "1999-01-01T00:00:00+00:00"},
    "expiry out of range": {"expires": "0001-01-01T00:00:00+23:59"},
    "a wrong expiry": {"expires": 5},
    "a time limit": {"timelimit": 5},
    "stamps": {"stamped_headers": 5, "stamps": []},
    "a shadow": {"shadow": []},
    "compression": {"compression": "zlib"},
    "an unknown compression": {"compression": "nothing"},
    "retries": {"retries": "many"},
    "deep values": {"origin": [[[[[]]]]]},
}

HERE = {"exchange": "", "routing_key": "cpu"}
PARTS: dict[str, dict[str, Any]] = {
    "no headers": {"headers": None},
    "a list for headers": {"headers": []},
    "a number for headers": {"headers": 5},
    "no properties": {"properties": None},
    "empty properties": {"properties": {}},
    "no delivery tag": {"properties": {"delivery_info": HERE, "body_encoding": "base64"}},
    "a list for a delivery tag": {"properties": {"delivery_tag": [], "delivery_info": HERE, "body_encoding": "base64"}},
    "no delivery info": {"properties": {"delivery_tag": "1", "body_encoding": "base64"}},
    "a list for delivery info": {"properties": {"delivery_tag": "1", "delivery_info": [], "body_encoding": "base64"}},
    "a wrong routing key": {
        "properties": {"delivery_tag": "1", "delivery_info": HERE | {"routing_key": "unacked"}, "body_encoding": "base64"}
    },
    "an unknown exchange": {
        "properties": {"delivery_tag": "1", "delivery_info": HERE | {"exchange": "x"}, "body_encoding": "base64"}
    },
    "pickle": {"content-type": "application/x-python-serialize", "content-encoding": "binary", "body": body(b"cos\nsystem\n.")},
    "yaml": {"content-type": "application/x-yaml", "body": body(b"!!python/object/apply:os.system [true]")},
    "no content type": {"content-type": None},
    "a list for a content type": {"content-type": []},
    "an unknown encoding": {"content-encoding": "klingon"},
    "an odd body": {"body": "A"},
    "a number for a body": {"body": 5},
    "no body": {"body": None},
    "a part of its own": {"more": [[[[]]]]},
}  # fmt: skip


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW)
def test_what_is_no_message_is_dropped_with_one_line(stack: WorkerStack, connection: redis.Redis, raw: bytes) -> None:
    (worker,) = stack.workers
    dropped = worker.said().count("junk_dropped")
    connection.lpush("cpu", raw)
    connection.lpush("cpu:9", raw)
    wait_until(lambda: worker.said().count("junk_dropped") == dropped + 2, "the log tells of it")
    last = [line for line in worker.said().splitlines() if "junk_dropped" in line][-1]
    assert "place=cpu" in last
    assert len(last) < 1500


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_message_with_wrong_parts_is_dropped(
    stack: WorkerStack, connection: redis.Redis, message: dict[str, Any], parts: dict[str, Any]
) -> None:
    (worker,) = stack.workers
    dropped = worker.said().count("junk_dropped")
    connection.lpush("cpu", json.dumps(message | parts))
    wait_until(lambda: worker.said().count("junk_dropped") == dropped + 1, "the log tells of it")
    for part in message:
        connection.lpush("cpu", json.dumps({key: value for key, value in message.items() if key != part}))


@pytest.mark.parametrize("value", BODIES.values(), ids=BODIES)
def test_a_message_with_a_wrong_body_does_no_harm(connection: redis.Redis, message: dict[str, Any], value: Any) -> None:
    connection.lpush("cpu", json.dumps(message | {"body": body(value)}))


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
def test_a_message_with_wrong_headers_does_no_harm(
    connection: redis.Redis, message: dict[str, Any], headers: dict[str, Any]
) -> None:
    connection.lpush("cpu", json.dumps(message | {"headers": message["headers"] | headers}))
    for name in headers:
        kept = {key: value for key, value in message["headers"].items() if key != name}
        connection.lpush("cpu", json.dumps(message | {"headers": kept}))


def test_junk_among_good_jobs_costs_none_of_them(stack: WorkerStack, connection: redis.Redis) -> None:
    jobs = []
    for n in range(50):
        connection.lpush("cpu", list(RAW.values())[n % len(RAW)])
        jobs.append(stack.client.predict("doubler/1", n))
    assert [job.result(120) for job in jobs] == [2 * n for n in range(50)]


def test_a_forged_envelope_cannot_run_a_job_with_another_model(
    stack: WorkerStack, connection: redis.Redis, message: dict[str, Any]
) -> None:
    stack.hold()
    stack.client.predict("recorder/1", {"n": 1})
    stack.wait_until_held()
    job = stack.client.predict("recorder/1", {"n": 2})
    connection.lpush("cpu", json.dumps(message | {"body": body(job_message("doubler", 1, [job.id], False))}))
    stack.go_on()
    assert job.result(120) == 2
    assert stack.runs().count(2) == 1


def test_a_message_sent_a_hundred_times_runs_its_job_once(
    stack: WorkerStack, connection: redis.Redis, message: dict[str, Any]
) -> None:
    stack.hold()
    job = stack.client.predict("recorder/1", {"n": 3})
    for _ in range(100):
        connection.lpush("cpu", json.dumps(message | {"body": body(job_message("recorder", 1, [job.id], False))}))
    stack.go_on()
    assert job.result(120) == 3
    wait_until(lambda: not connection.exists("cpu", "unacked"), "every copy is read")
    assert stack.runs().count(3) == 1
    assert job.info().attempt == 1


COMMANDS: dict[str, dict[str, Any]] = {
    "shutdown": {},
    "revoke": {"task_id": "x", "terminate": True},
    "terminate": {"task_id": "x", "signal": "KILL"},
    "add_consumer": {"queue": "gpu"},
    "cancel_consumer": {"queue": "cpu"},
    "pool_shrink": {"n": 1},
    "pool_grow": {"n": 3},
    "pool_restart": {},
    "autoscale": {"max": 0, "min": 0},
    "rate_limit": {"task_name": "forebay.predict", "rate_limit": "1/h"},
    "time_limit": {"task_name": "forebay.predict", "hard": 1},
    "hello": {"from_node": "x", "revoked": {"x": 1}},
    "disable_events": {},
    "election": {"id": "1", "topic": "task", "action": {}},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_remote_control_cannot_change_a_worker(stack: WorkerStack, connection: redis.Redis, command: str) -> None:
    app = make_app(stack.settings)
    (answer,) = app.control.broadcast(command, arguments=COMMANDS[command], reply=True, timeout=60, limit=1)
    assert "error" in answer["w1@test"]
    stats = app.control.inspect(timeout=60, limit=1).stats()["w1@test"]
    assert stats["pool"]["max-concurrency"] == 1
    queues = app.control.inspect(timeout=60, limit=1).active_queues()["w1@test"]
    assert [queue["name"] for queue in queues] == ["cpu"]
    app.close()


def test_a_worker_can_be_looked_at(stack: WorkerStack, connection: redis.Redis) -> None:
    app = make_app(stack.settings)
    stack.hold()
    job = stack.client.predict("recorder/1", {"n": 4})
    stack.wait_until_held()
    assert app.control.ping(timeout=60, limit=1) == [{"w1@test": {"ok": "pong"}}]
    (active,) = app.control.inspect(timeout=60, limit=1).active()["w1@test"]
    assert active["name"] == "forebay.predict"
    assert app.control.inspect(timeout=60, limit=1).registered() == {"w1@test": ["forebay.predict"]}
    stack.go_on()
    assert job.result(120) == 4
    app.close()


BROADCASTS = {
    "an empty list": [],
    "a number": 5,
    "an object": {},
    "a wrong method": {"method": 5},
    "a list for arguments": {"method": "ping", "arguments": [], "reply_to": None},
    "a wrong answer address": {"method": "ping", "reply_to": 5, "ticket": "1"},
    "a wrong destination": {"method": "ping", "destination": 5},
    "a slow expression": {"method": "ping", "pattern": "(w+)+$", "matcher": "pcre"},
    "an unknown method": {"method": "no_such", "arguments": {"x": 1}},
    "no JSON": b"\xff",
}


@pytest.mark.parametrize("value", BROADCASTS.values(), ids=BROADCASTS)
def test_a_junk_broadcast_leaves_remote_control_working(
    stack: WorkerStack, connection: redis.Redis, message: dict[str, Any], value: Any
) -> None:
    connection.publish(PIDBOX, json.dumps(message | {"body": body(value), "headers": {}}))
    connection.publish(PIDBOX, value if isinstance(value, bytes) else json.dumps(value))
    connection.publish(PIDBOX, json.dumps(message | {"body": body(value), "headers": {"clock": "x", "expires": "y"}}))
    app = make_app(stack.settings)
    assert app.control.ping(timeout=60, limit=1) == [{"w1@test": {"ok": "pong"}}]
    app.close()
