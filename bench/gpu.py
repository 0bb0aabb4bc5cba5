"""Forebay against a bare torch loop on a GPU: a ResNet-50, a BERT-base-sized encoder and a tiny network.

`python -m bench.gpu` runs them on CUDA; `--device cpu --small` tries the script itself where there is none. Both
sides run the same module on the same rows in the same batches; every result is compared.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from bench import networks
from bench.stack import WAIT_S, embedded_stack, temporary_folder
from forebay.producer.client import Client


@dataclass(frozen=True)
class Case:
    """A network, its rows, and how they are cut into jobs and batches."""

    name: str
    about: str
    build: Callable[[bool], torch.nn.Module]
    rows: Callable[[int, bool], NDArray[Any]]
    field: str
    count: int
    batch: int
    rows_per_job: int
    dtype: Literal["bfloat16"] | None = "bfloat16"


@dataclass(frozen=True)
class Measured:
    """Rows per second of the bare loop and of Forebay, a figure for each round."""

    case: Case
    bare: list[float]
    forebay: list[float]

    @property
    def ratio(self) -> float:
        """Forebay's share of the bare loop's rate: the median of the rounds' ratios."""
        return statistics.median(f / b for f, b in zip(self.forebay, self.bare, strict=True))


def images(count: int, small: bool) -> NDArray[Any]:
    """(count, 3, 224, 224) bytes."""
    side = 32 if small else 224
    return np.random.default_rng(networks.SEED).integers(0, 256, (count, 3, side, side), np.uint8)


def token_ids(count: int, small: bool) -> NDArray[Any]:
    """(count, 128) ids of words."""
    return np.random.default_rng(networks.SEED).integers(0, 30522, (count, 16 if small else 128), np.int64)


def vectors(count: int, small: bool) -> NDArray[Any]:  # noqa: ARG001 - made like the others
    """(count, 64) numbers."""
    return np.random.default_rng(networks.SEED).standard_normal((count, 64), np.float32)


CASES = (
    Case("cnn", "ResNet-50, bfloat16, images 3x224x224 of bytes, 64 to a job", networks.resnet50, images, "image", 8192, 128, 64),
    Case("encoder", "BERT-base-sized, bfloat16, 128 tokens, 64 to a job", networks.bert_base, token_ids, "ids", 16384, 128, 64),
    Case("mlp", "64-128-10, float32, one row to a job", networks.mlp, vectors, "x", 20000, 256, 1, None),
)  # fmt: skip


def measure(device: str, rounds: int, small: bool, console: Console) -> list[Measured]:
    """Every case on `device`, the bare loop and Forebay in turn."""
    queue = "gpu" if device.startswith("cuda") else "cpu"
    with temporary_folder() as folder, embedded_stack(queue=queue) as (client, _):
        return [_case(case, client, queue, device, rounds, small, folder, console) for case in CASES]


def _case(
    case: Case, client: Client, queue: str, device: str, rounds: int, small: bool, folder: Path, console: Console
) -> Measured:
    module = case.build(small).eval()
    rows = case.rows(case.count // 128 if small else case.count, small)
    _register(case, client, module, rows, small, folder, queue)
    bare = partial(_bare, module.to(device), rows, case, device)
    ours = partial(_ours, client, rows, case, queue)
    expected = bare()  # the first run of each side pays for loading, cuDNN's choice of kernels, and the like
    _compare(case, ours(), expected)
    measured = Measured(case, [], [])
    for i in range(rounds):
        for take, rates in ((bare, measured.bare), (ours, measured.forebay)):
            started = time.perf_counter()
            made = take()
            rates.append(len(rows) / (time.perf_counter() - started))
            _compare(case, made, expected)
        console.print(f"{case.name} round {i + 1} of {rounds}: {measured.forebay[-1] / measured.bare[-1]:.3f}")
    return measured


def _register(
    case: Case, client: Client, module: torch.nn.Module, rows: Any, small: bool, folder: Path, queue: str
) -> None:
    artifact = folder / f"{case.name}.safetensors"
    save_file(module.state_dict(), artifact)
    client.models.register(
        case.name,
        artifact,
        options={"factory": f"bench.networks:{case.build.__name__}", "kwargs": {"small": small}},
        inputs={case.field: {"dtype": rows.dtype.name, "shape": list(rows.shape[1:])}},
        max_batch_size=case.batch,
        resources={"gpu": 1} if queue == "gpu" else None,
        dtype=case.dtype,
    )


@torch.inference_mode()
def _bare(module: torch.nn.Module, rows: NDArray[Any], case: Case, device: str) -> NDArray[Any]:
    """The limit: the same batches in this process, copied through pinned memory."""
    kind, made = device.partition(":")[0], []
    for start in range(0, len(rows), case.batch):
        batch = torch.from_numpy(rows[start : start + case.batch])
        if kind == "cuda":
            batch = batch.pin_memory().to(device, non_blocking=True)
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=case.dtype is not None):
            made.append(module(batch).float().cpu().numpy())
    return np.concatenate(made)


def _ours(client: Client, rows: NDArray[Any], case: Case, queue: str) -> NDArray[Any]:
    size = case.rows_per_job
    inputs = rows if size == 1 else [rows[i : i + size] for i in range(0, len(rows), size)]
    jobs = client.predict_many(case.name, inputs, queue=queue, batched=size > 1)
    results = [job.result(WAIT_S) for job in jobs]
    return np.stack(results) if size == 1 else np.concatenate(results)


def _compare(case: Case, made: NDArray[Any], expected: NDArray[Any]) -> None:
    close = 1e-4 if case.dtype is None else 0.1  # bfloat16 has 8 bits, and kernels depend on the batch's size
    if made.shape != expected.shape or not np.allclose(made, expected, atol=close, rtol=close):
        raise SystemExit(f"{case.name}: a result differs from the bare loop's")


def device_name(device: str, small: bool = False) -> str:
    """What the device calls itself, and whether this was only a try."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return f"{name} (tiny networks, a try)" if small else name


def table(measured: list[Measured], where: str) -> Table:
    """Medians and ratios."""
    shown = Table(title=f"Forebay and a bare torch loop on {where}", title_justify="left")
    for column in ("network", "bare loop, rows/s", "forebay, rows/s", "of the bare loop"):
        shown.add_column(column, justify="left" if column == "network" else "right")
    for m in measured:
        medians = (f"{statistics.median(rates):,.0f}" for rates in (m.bare, m.forebay))
        shown.add_row(f"{m.case.name}: {m.case.about}", *medians, f"{m.ratio:.3f}")
    return shown


def as_json(measured: list[Measured], where: str) -> str:
    """One line with everything measured."""
    rates = {m.case.name: {"bare loop": m.bare, "forebay": m.forebay, "ratio": m.ratio} for m in measured}
    return json.dumps({"device": where, "torch": torch.__version__, "cases": rates})


def write(measured: list[Measured], where: str, path: Path) -> None:
    """The table as a page."""
    lines = [
        f"# Benchmark on {where}", "",
        f"`python -m bench.gpu`, {datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}.", "",
        "| network | bare loop, rows/s | forebay, rows/s | of the bare loop |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for m in measured:
        medians = " | ".join(f"{statistics.median(rates):,.0f}" for rates in (m.bare, m.forebay))
        lines.append(f"| {m.case.name}: {m.case.about} | {medians} | {m.ratio:.3f} |")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(
    device: Annotated[str, typer.Option(help="cuda, cuda:1, or cpu.")] = "cuda",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often each side runs.")] = 3,
    small: Annotated[bool, typer.Option("--small", help="Tiny networks and few rows: to try the script.")] = False,
    docs: Annotated[Path | None, typer.Option(help="Write the table to this file.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Measure Forebay against a bare torch loop on a GPU, in turn, in one run.

    Example: `python -m bench.gpu --rounds 5 --docs docs/benchmark-gpu.md`
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here; `--device cpu --small` tries the script without one")
    measured, where = measure(device, rounds, small, Console(stderr=True)), device_name(device, small)
    if docs is not None:
        write(measured, where, docs)
    if json:
        typer.echo(as_json(measured, where))
    else:
        Console().print(table(measured, where))


if __name__ == "__main__":
    typer.run(main)
