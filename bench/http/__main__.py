"""`python -m bench.http`: W5, predictions over HTTP whose results are waited for, 64 floats in as JSON, by wrk.

mosec and FastAPI are no dependencies of ours: `--peers` names the Python of an environment that has them, and torch and
Celery. Who is not installed is left out.
"""

from __future__ import annotations

import json as json_module
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bench import workloads
from bench.contenders import PlainCelery
from bench.stack import WAIT_S, embedded_stack, temporary_folder
from forebay.contract.job import JobState
from forebay.producer.client import Client

ROWS = 500
PATHS = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
LUA = Path(__file__).with_name("post.lua")
NEEDED = {"mosec": "mosec, torch", "FastAPI + Celery": "fastapi, uvicorn, celery, torch"}


class Contender:
    """A server that answers POSTs of `body(row)` at `url` with a JSON object that has `result`."""

    def __init__(self, url: str, model: str = "") -> None:
        self.url, self.extra = url, {"model": model} if model else {}

    def body(self, row: Any) -> str:
        return json_module.dumps(self.extra | {"inputs": [float(value) for value in row]})

    def check(self, rows: Any) -> None:
        """Hold its results against a direct forward pass."""
        made = [self._ask(row) for row in rows]
        if not np.allclose(made, workloads.forward("mlp", rows), atol=1e-4):
            raise SystemExit(f"{self.url}: a result differs from the direct forward pass")

    def wait_until_up(self, row: Any) -> None:
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            try:
                self._ask(row)
            except (OSError, ValueError):
                time.sleep(0.2)
            else:
                return
        raise SystemExit(f"{self.url} did not come up within {WAIT_S} s")

    def measure(self, rows: Any, folder: Path, connections: int, seconds: int) -> dict[str, float]:
        """A run of wrk: requests, seconds, errors, p50_ms, p99_ms."""
        bodies = folder / "bodies"
        bodies.write_text("".join(f"{self.body(row)}\n" for row in rows))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(LUA), self.url]
        done = subprocess.run(
            command, env=os.environ | {"BODIES": str(bodies)}, capture_output=True, text=True, check=True
        )
        figures: dict[str, float] = json_module.loads(done.stdout.splitlines()[-1])
        return figures

    def _ask(self, row: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url, self.body(row).encode(), headers)  # noqa: S310 - a server of ours
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return json_module.load(response)["result"]


@contextmanager
def forebay(folder: Path) -> Iterator[tuple[Contender, Client]]:
    """`forebay serve` on an embedded stack."""
    with embedded_stack() as (client, _):
        client.models.register("mlp", workloads.export(folder), max_batch_size=workloads.MAX_BATCH_SIZE["mlp"])
        port = _free_port()
        command = [sys.executable, "-m", "forebay", "serve", "--port", str(port)]
        with _running(command, client.settings.child_environment(), folder / "serve.log"):
            yield Contender(f"http://127.0.0.1:{port}/predict", "mlp"), client


@contextmanager
def fastapi_and_celery(folder: Path, python: str) -> Iterator[Contender]:
    """The endpoint of plain_fastapi.py, with the worker and Valkey of `PlainCelery`."""
    with ExitStack() as running:
        running.callback(PlainCelery(folder).stop)
        port = _free_port()
        command = [python, "-m", "uvicorn", "bench.http.plain_fastapi:app", "--port", str(port), "--no-access-log"]
        with _running(command, dict(os.environ), folder / "fastapi.log"):
            yield Contender(f"http://127.0.0.1:{port}/predict")


@contextmanager
def mosec(folder: Path, python: str) -> Iterator[Contender]:
    """plain_mosec.py."""
    port = _free_port()
    command = [
        python,
        "-m",
        "bench.http.plain_mosec",
        "--address",
        "127.0.0.1",
        "--port",
        str(port),
        "--timeout",
        "30000",
    ]
    with _running(command, dict(os.environ), folder / "mosec.log"):
        yield Contender(f"http://127.0.0.1:{port}/inference")


def bench(
    seconds: Annotated[int, typer.Option(min=1, max=600, help="How long wrk runs each time.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often each contender runs.")] = 3,
    connections: Annotated[int, typer.Option(min=1, max=1000, help="Connections that are kept open.")] = 32,
    peers: Annotated[str, typer.Option(help="The Python that has mosec and FastAPI.")] = sys.executable,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure `/predict` of Forebay beside mosec and a hand-written endpoint of FastAPI and Celery, in turn."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed")
    os.environ["PYTHONPATH"] = os.pathsep.join(PATHS)  # the others import bench too
    console = Console(stderr=True)
    rows = workloads.rows("W1", ROWS)
    found: dict[str, list[dict[str, float]]] = {}
    with temporary_folder() as folder, ExitStack() as running:
        ours, client = running.enter_context(forebay(folder))
        contenders = {"forebay": ours}
        for name, start in (("mosec", mosec), ("FastAPI + Celery", fastapi_and_celery)):
            if subprocess.run([peers, "-c", f"import {NEEDED[name]}"], capture_output=True, check=False).returncode:
                console.print(f"{name} is left out: {peers} lacks one of {NEEDED[name]}")
            else:
                contenders[name] = running.enter_context(start(folder, peers))
        for contender in contenders.values():
            contender.wait_until_up(rows[0])
            contender.check(rows[:20])
        before = _succeeded(client)
        for i in range(rounds):
            for name, contender in contenders.items():
                found.setdefault(name, []).append(contender.measure(rows, folder, connections, seconds))
            console.print(f"round {i + 1} of {rounds}")
        kept, answered = _succeeded(client) - before, sum(figures["requests"] for figures in found["forebay"])
        if kept < answered:
            raise SystemExit(
                f"{answered:,.0f} requests were answered, and the ledger has {kept:,} more jobs that succeeded"
            )
    if json:
        typer.echo(json_module.dumps(found))
    else:
        Console().print(_table(found))


def _table(found: dict[str, list[dict[str, float]]]) -> Table:
    table = Table(title="W5: predictions over HTTP; medians of the rounds", title_justify="left")
    for column in ("contender", "requests/s", "p50 ms", "p99 ms", "errors", "forebay's rate to its"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    rates = {name: [one["requests"] / one["seconds"] for one in rounds] for name, rounds in found.items()}
    for name, rounds in found.items():
        p50, p99 = (statistics.median(one[key] for one in rounds) for key in ("p50_ms", "p99_ms"))
        ratio = statistics.median(a / b for a, b in zip(rates["forebay"], rates[name], strict=True))
        errors = sum(one["errors"] for one in rounds)
        table.add_row(
            name, f"{statistics.median(rates[name]):,.0f}", f"{p50:.1f}", f"{p99:.1f}", f"{errors:,.0f}", f"{ratio:.2f}"
        )
    return table


def _succeeded(client: Client) -> int:
    return client.session.jobs.queries.counts()[JobState.SUCCEEDED]


@contextmanager
def _running(command: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return int(listening.getsockname()[1])


if __name__ == "__main__":
    typer.run(bench)
