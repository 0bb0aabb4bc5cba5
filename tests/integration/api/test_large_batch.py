"""A batch file at the limits: 200 MB in 50,000 lines, up, run, and down again, through a server of bounded memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import openai
import psutil
import pytest

from support.api import serve_command
from support.waiting import wait_until
from support.worker_stack import WorkerStack

LINES, LINE_BYTES, LIMIT = 50_000, 4_000, 300 * 10**6


def lines() -> Iterator[bytes]:
    for i in range(LINES):
        body = {"model": "vectors", "input": f"{i} ".ljust(LINE_BYTES - 100, "x")}
        asked = {"custom_id": f"line {i}", "method": "POST", "url": "/v1/embeddings", "body": body}
        yield json.dumps(asked).encode() + b"\n"


class Peak(Thread):
    """The most memory that a process had, looked at ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process, self._over, self.bytes = psutil.Process(pid), Event(), 0

    def run(self) -> None:
        while not self._over.wait(0.1):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.bytes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_file_of_200_mb_and_50_000_lines_goes_through_a_server_of_less_than_300_mb(
    own: WorkerStack, tmp_path: Path
) -> None:
    own.model("Vectors")
    own.worker()
    path = tmp_path / "in.jsonl"
    with path.open("wb") as file:
        file.writelines(lines())
    assert 190e6 < path.stat().st_size < 210e6
    with serve_command(own.settings, tmp_path / "api.log") as server:
        peak = Peak(server.process.pid)
        peak.start()
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600)
        with path.open("rb") as file:
            uploaded = client.files.create(file=("in.jsonl", file), purpose="batch")
        made = client.batches.create(input_file_id=uploaded.id, endpoint="/v1/embeddings", completion_window="24h")
        batch = wait_until(
            lambda: found if (found := client.batches.retrieve(made.id)).status in ("completed", "failed") else None,
            "the batch has ended", 1500,
        )  # fmt: skip
        assert (batch.status, batch.errors) == ("completed", None)
        assert batch.output_file_id is not None
        with client.files.with_streaming_response.content(batch.output_file_id) as content:
            told = [json.loads(line)["custom_id"] for line in content.iter_lines()]
        most = peak.stop()
    assert told == [f"line {i}" for i in range(LINES)]
    assert most < LIMIT, f"{most / 1e6:,.0f} MB"
