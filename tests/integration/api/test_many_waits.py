"""A thousand connections that wait for a job each: few threads, little memory, and every one gets its own result."""

import asyncio
import http.client
import json
import re
import resource
from contextlib import closing
from pathlib import Path

import psutil

from support.api import ServeCommand, serve_command
from support.worker_stack import WorkerStack

WAITS = 1000
MIB = 2**20


def submitted(server: ServeCommand) -> list[str]:
    """The ids of WAITS jobs. The server submits them, so that their ends are announced to it."""
    lines = "\n".join(json.dumps({"n": n}) for n in range(WAITS))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with closing(connection):
        connection.request("POST", "/api/v1/jobs:many?model=recorder", lines)
        ids: list[str] = json.loads(connection.getresponse().read())["ids"]
    return ids


async def result_of(server: ServeCommand, id: str) -> int:
    """Waited for on one connection, as long as it takes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    status, body = 504, b""
    while status == 504:
        writer.write(b"GET /api/v1/jobs/%s/result?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n" % id.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split()[1])
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        body = await reader.readexactly(int(length[1]))
    writer.close()
    await writer.wait_closed()
    assert status == 200, body
    return int(json.loads(body))


async def in_flight(server: ServeCommand) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    told = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    found = re.search(r'http_requests_in_flight\{dialect="native"\} (\d+)', told)
    return int(found[1]) if found else 0


async def wait_for_all(server: ServeCommand, stack: WorkerStack, ids: list[str]) -> list[int]:
    process = psutil.Process(server.process.pid)
    threads, memory = process.num_threads(), process.memory_info().rss
    results = [asyncio.create_task(result_of(server, id)) for id in ids]
    async with asyncio.timeout(120):
        while await in_flight(server) <= WAITS:  # the question for it is one more
            await asyncio.sleep(0.05)
    assert process.num_threads() <= threads + 12
    assert process.memory_info().rss < memory + 100 * MIB
    stack.go_on()
    return await asyncio.gather(*results)


def test_a_thousand_long_polls_cost_few_threads_and_each_gets_its_result(own: WorkerStack, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    own.model("Recorder")
    own.worker()
    own.hold()
    with serve_command(own.settings, tmp_path / "api.log") as server:
        ids = submitted(server)
        assert asyncio.run(wait_for_all(server, own, ids)) == list(range(WAITS))
