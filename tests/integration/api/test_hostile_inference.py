"""Hostile requests to /v2: each is refused in the protocol's words or cut off, tells nothing of the server, and stores nothing.

The models' queue is full, so that a request which is good after all is refused too, as the last thing before it would be stored.
"""

import json
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from support.api import RunningApi, running_api
from support.hostile_requests import hostile_request
from support.worker_stack import WorkerStack

PAIR = {
    "left": {"dtype": "float32", "shape": [-1]},
    "right": {"dtype": "float32", "shape": [-1]},
    "word": {"dtype": "str"},
}
LIMIT = 1 << 20
MAY_BE = {200, 400, 403, 404, 405, 408, 413, 429}
OURS = re.compile(
    rb"Traceback|File \"|site-packages|\.py\b|/tmp/|/home/|/work/|/usr/|sqlite|Error:|0x[0-9a-f]{8}", re.IGNORECASE
)


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    """No worker, and a queue with room for one job, which is there."""
    stack = open_stack(QUEUES=json.dumps({"cpu": {"max_queue_size": 1}}), API_MAX_BODY_BYTES=str(LIMIT))
    ref = stack.model("TwoWays", "pair", inputs=PAIR)
    stack.client.models.set_alias("pair", "champion", 1)
    stack.client.predict(ref, {"left": [1.0], "right": [1.0], "word": "x"})
    return stack


@pytest.fixture(scope="module")
def server(stack: WorkerStack) -> Iterator[RunningApi]:
    with running_api(stack.settings) as server:
        yield server


def answered(port: int, request: bytes) -> bytes:
    """What the server says to these bytes; b"" when it hangs up."""
    head, _, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"\r\nContent-Length: (\d+)", head)
    waits_for_more = b"Transfer-Encoding" in head or (length is not None and int(length[1]) > len(body))
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        said = b""
        try:
            connection.sendall(request)
            if waits_for_more:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                said += part
        except OSError:  # the server does not read what it has refused
            pass
        return said


def check(said: bytes, seed: int) -> int:
    """The status of an answer that is as it should be; 0 for none."""
    head, _, body = said.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    if not head:
        return 0
    status = int(head.split()[1])
    assert status in MAY_BE, (seed, said[:500])
    assert not OURS.search(said), (seed, said[:2000])
    assert b"x-injected" not in head.lower(), (seed, head)
    if status != 200 and b"application/json" in head and body:
        assert list(json.loads(body)) == ["error"], (seed, body)
    return status


def attack(server: RunningApi, seeds: range) -> Counter[int]:
    return Counter(check(answered(server.port, hostile_request(seed, LIMIT)), seed) for seed in seeds)


def assert_unharmed(server: RunningApi, stack: WorkerStack) -> None:
    assert server.ask("GET", "/v2/health/ready").status == 200
    [job] = stack.client.jobs(limit=100)
    assert (str(job.state), job.model) == ("queued", "pair")
    assert not [path for path in (stack.settings.home / "blobs").rglob("*") if path.is_file()]


def test_hundreds_of_hostile_requests_change_nothing(server: RunningApi, stack: WorkerStack) -> None:
    found = attack(server, range(400))
    assert found[400] > 200, found
    assert {404, 405, 413, 429} <= found.keys(), found
    assert_unharmed(server, stack)


@pytest.mark.slow
def test_ten_thousand_hostile_requests_change_nothing(server: RunningApi, stack: WorkerStack) -> None:
    print(attack(server, range(400, 10_400)))  # noqa: T201 - the evidence, with -s
    assert_unharmed(server, stack)
