"""The demo's first part: handwritten digits. Train a small network plainly, register it, classify 360 held-out images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from forebay.contract.errors import InvalidInput
from forebay.producer.client import Client
from forebay.producer.handles.job import Job
from forebay.producer.waiting.progress import watch

HELD_OUT = 360
EPOCHS = 60


def run(client: Client, console: Console, folder: Path) -> bool:
    """Print what happens; True when every job succeeded with the result of a direct forward pass."""
    console.rule("1. handwritten digits")
    train_x, test_x, train_y, test_y = _data()
    net = train(train_x, train_y)
    model = client.models.register("digits", export(net, folder / "digits.pt2"), max_batch_size=256)
    client.models.set_alias("digits", "champion", model.version)
    console.print(
        f"registered {model.ref} as digits@champion: takes {_fields(model.signature.inputs)}", highlight=False
    )
    refused = _wrong_input_is_refused(client, console)

    first_job(client, console, model.ref, test_x[0])
    started = time.perf_counter()
    jobs = client.predict_many("digits@champion", test_x)
    watch(jobs, timeout=300, title="digits")
    seconds = time.perf_counter() - started
    failed = [job for job in jobs if job.exception(60) is not None]
    if failed:
        console.print(f"[red]{len(failed)} jobs failed:[/] {failed[0].exception()}")
        return False
    logits = np.stack([job.result() for job in jobs])  # (360, 10)
    with torch.inference_mode():
        direct = net(torch.from_numpy(test_x)).numpy()
    equal = bool(np.allclose(logits, direct, atol=1e-5))
    console.print(summary(jobs, seconds, {"accuracy": f"{(logits.argmax(1) == test_y).mean():.1%}", **same(equal)}))
    return equal and refused


def train(x: NDArray[np.float32], y: NDArray[np.int64]) -> torch.nn.Module:
    """A network of two layers, trained by full-batch Adam; the training *job* is `client.train`'s business."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(inputs), labels).backward()  # type: ignore[no-untyped-call] # torch
        optimizer.step()
    return net.eval()


def export(net: torch.nn.Module, path: Path) -> Path:
    """The network as a .pt2 archive with a free batch dimension: what a version's artifact usually is."""
    program = torch.export.export(net, (torch.zeros(2, 64),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)
    return path


def first_job(client: Client, console: Console, model: str, sample: Any) -> None:
    """One job ahead of the others: it waits while the worker loads the model."""
    started = time.perf_counter()
    client.predict(model, sample).result(300)
    console.print(f"first job: {time.perf_counter() - started:.1f} s, most of it loading the model", highlight=False)


def summary(jobs: list[Job], seconds: float, more: dict[str, str]) -> Table:
    """Jobs by state, throughput, and the latency from submit to finish as the ledger has it."""
    infos = [job.info() for job in jobs]
    latencies = sorted(
        (i.finished_at - i.created_at).total_seconds() * 1000 for i in infos if i.finished_at is not None
    )
    states = ", ".join(f"{sum(i.state == s for i in infos)} {s}" for s in sorted({i.state for i in infos}))
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = {
        "jobs": states,
        "throughput": f"{len(jobs) / seconds:,.0f} jobs/s",
        "latency p50": f"{latencies[len(latencies) // 2]:.0f} ms",
        "latency p99": f"{latencies[int(len(latencies) * 0.99)]:.0f} ms",
        **more,
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def same(equal: bool) -> dict[str, str]:
    """How the results compare with a direct forward pass, as a row of the table."""
    return {"same as direct": "yes, every one" if equal else "[red]NO[/]"}


def _wrong_input_is_refused(client: Client, console: Console) -> bool:
    try:
        client.predict("digits@champion", np.zeros((8, 8), np.float32))
    except InvalidInput as error:
        console.print(f"an image of the wrong shape is refused: [dim]{error}[/]", highlight=False)
        return True
    console.print("[red]an image of the wrong shape was accepted[/]")
    return False


def _data() -> tuple[Any, ...]:
    digits = load_digits()
    x = (digits.data / 16.0).astype(np.float32)  # (1797, 64), grey values from 0 to 1
    split: list[Any] = train_test_split(x, digits.target.astype(np.int64), test_size=HELD_OUT, random_state=0)
    return tuple(split)


def _fields(fields: tuple[Any, ...] | None) -> str:
    return ", ".join(f"{f.name}: {f}" for f in fields or ()) or "anything"
