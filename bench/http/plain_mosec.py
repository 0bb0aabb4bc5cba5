"""The same network behind mosec: batches made by load, nothing kept."""

from __future__ import annotations

from typing import Any

from mosec import Server, Worker

from bench import workloads

MAX_WAIT_MS = 5


class Network(Worker):
    """One process with the model."""

    def forward(self, data: list[Any]) -> list[Any]:
        """A batch of requests."""
        results = workloads.forward("mlp", [one["inputs"] for one in data])
        return [{"result": result} for result in results.tolist()]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Network, num=1, max_batch_size=workloads.MAX_BATCH_SIZE["mlp"], max_wait_time=MAX_WAIT_MS)
    server.run()
