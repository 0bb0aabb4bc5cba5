"""What people do on a GPU, by Forebay and by hand: a folder of images and a data set of texts as batch jobs, an encoder through
`predict_many`, a round trip.

`python -m bench.gpu` runs them on CUDA, and is meant to take less than five minutes there; `--device cpu --small` tries the
script itself where there is none. Both sides run the same module on the same rows in the same batches, in turn; every result is
compared. The loops by hand use a DataLoader with the number of workers that is best on the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from bench import networks, workloads
from bench.gauge import Gauge
from bench.loaders import SIDE, Files, Tokens, loop, make_loader, write_files
from bench.parquet import write_data_set
from bench.stack import WAIT_S, embedded_stack, temporary_folder
from forebay.producer.client import Client

BFLOAT16: Literal["bfloat16"] = "bfloat16"
CLOSE = 0.1  # bfloat16 has 8 bits, and kernels depend on the batch's size
WORKERS = (1, 2, 4, 8, 16)  # of a DataLoader, as far as there are cores
Take = Callable[[], NDArray[Any]]


@dataclass
class Side:
    """Of one side: items per second in each round, how busy the device was (0 to 1), and the most memory it held."""

    rates: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)


@dataclass
class Case:
    """The same work by hand and by Forebay, and what was measured of both."""

    name: str
    about: str
    count: int
    by_hand: Take
    by_forebay: Take
    close: float = CLOSE
    hand: Side = field(default_factory=Side)
    forebay: Side = field(default_factory=Side)

    @property
    def ratio(self) -> float:
        """Forebay's share of the other rate: the median of the rounds' ratios."""
        return statistics.median(f / h for f, h in zip(self.forebay.rates, self.hand.rates, strict=True))


@dataclass(frozen=True)
class Place:
    """Where a case is measured."""

    client: Client
    folder: Path
    device: str
    small: bool

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def queue(self) -> str:
        return "gpu" if self.cuda else "cpu"

    def size(self, count: int) -> int:
        return count // 256 if self.small else count

    def register(self, name: str, module: torch.nn.Module, inputs: Any, batch: int, dtype: Any = BFLOAT16) -> Any:
        """A network of bench.networks as a version; itself, on the device."""
        save_file(module.state_dict(), self.folder / f"{name}.safetensors")
        self.client.models.register(
            name, self.folder / f"{name}.safetensors", inputs=inputs, max_batch_size=batch, dtype=dtype,
            options={"factory": f"bench.networks:{name}", "kwargs": {"small": self.small}}, resources=self.resources,
        )  # fmt: skip
        return module.eval().to(self.device)

    @property
    def resources(self) -> dict[str, int] | None:
        return {"gpu": 1} if self.cuda else None

    def batch(self, model: str, data: Path, **more: Any) -> Any:
        """A batch job's output, as one table."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        self.client.batch(model, data, out, queue=self.queue, **more).result(WAIT_S)
        return pq.read_table(out)


def images(place: Place) -> Case:
    """JPEG files of 17 kB through a ResNet-50."""
    count = place.size(16_384)
    files = write_files(place.folder / "images", count)
    inputs = {"image": {"dtype": "uint8", "shape": [SIDE, SIDE, 3]}}
    net = place.register("resnet50_of_files", networks.resnet50_of_files(place.small), inputs, 128)
    workers, by_hand = _best_loop(place, Files(files), 128, net, files)

    def by_forebay() -> NDArray[Any]:
        table = place.batch("resnet50_of_files", place.folder / "images").sort_by("path")
        return _vectors(table["output"])

    return Case("images", f"JPEG files, ResNet-50, batch job; DataLoader of {workers}", count, by_hand, by_forebay)


def texts(place: Place) -> Case:
    """English sentences from Parquet through MiniLM."""
    from sentence_transformers import SentenceTransformer

    count, folder = place.size(65_536), workloads.minilm_folder()
    data = write_data_set("W3t", place.folder / "texts", count)
    place.client.models.register("minilm", folder, max_batch_size=256, dtype=BFLOAT16, resources=place.resources)
    model = SentenceTransformer(str(folder), device=place.device).eval()
    rows = workloads.rows("W3t", count)
    order = sorted(range(count), key=lambda i: -len(rows[i]))  # texts of like length in a batch, as anyone would
    workers, sorted_by_hand = _best_loop(
        place,
        [rows[i] for i in order],
        256,
        lambda tokens: model(tokens)["sentence_embedding"],
        order,
        Tokens(str(folder)),
    )

    def by_hand() -> NDArray[Any]:
        made = sorted_by_hand()
        back = np.empty_like(made)
        back[order] = made
        return back

    def by_forebay() -> NDArray[Any]:
        return _vectors(place.batch("minilm", data, columns="text", keep="id").sort_by("id")["output"])

    return Case("texts", f"sentences, MiniLM, batch job; DataLoader of {workers}", count, by_hand, by_forebay)


def encoder(place: Place) -> Case:
    """128 tokens a row, 64 rows a job, through a BERT-base-sized encoder; by hand, a loop over the same array."""
    count = max(128, place.size(16_384))
    rows = np.random.default_rng(networks.SEED).integers(0, 30522, (count, 16 if place.small else 128), np.int64)
    inputs = {"ids": {"dtype": "int64", "shape": [rows.shape[1]]}}
    net = place.register("bert_base", networks.bert_base(place.small), inputs, 128)
    parts = [rows[i : i + 64] for i in range(0, count, 64)]
    batches = [torch.from_numpy(rows[i : i + 128]) for i in range(0, count, 128)]
    out = place.folder / "encoder.parquet"

    def by_forebay() -> NDArray[Any]:
        jobs = place.client.predict_many("bert_base", parts, queue=place.queue, batched=True)
        return np.concatenate([job.result(WAIT_S) for job in jobs])

    return Case(
        "encoder", "BERT-base-sized, 64 rows a job, predict_many", count,
        lambda: loop(net, batches, range(count), out, place.device, torch.bfloat16), by_forebay,
    )  # fmt: skip


def round_trip(place: Place) -> Case:
    """A job after the other; by hand, a forward pass in this process."""
    count = max(20, place.size(512))
    rows = np.random.default_rng(networks.SEED).standard_normal((count, 64), np.float32)
    net = place.register("mlp", networks.mlp(place.small), {"x": {"dtype": "float32", "shape": [64]}}, 256, None)

    @torch.inference_mode()
    def by_hand() -> NDArray[Any]:
        return np.stack([net(torch.from_numpy(row[None]).to(place.device)).cpu().numpy()[0] for row in rows])

    def by_forebay() -> NDArray[Any]:
        return np.stack([place.client.predict("mlp", row, queue=place.queue).result(WAIT_S) for row in rows])

    return Case("round trip", "a small network, one row at a time", count, by_hand, by_forebay, 1e-4)


CASES = (images, texts, encoder, round_trip)


def measure(device: str, rounds: int, small: bool, console: Console) -> list[Case]:
    """Every case on `device`, both sides in turn."""
    measured = []
    with (
        temporary_folder() as folder,
        embedded_stack(queue="gpu" if device.startswith("cuda") else "cpu") as (client, _),
    ):
        place = Place(client, folder, device, small)
        for make in CASES:
            case = make(place)
            expected = case.by_hand()  # the first run of each side pays for loading, cuDNN's choice of kernels …
            _compare(case, case.by_forebay(), expected)
            for _ in range(rounds):
                for take, side in ((case.by_hand, case.hand), (case.by_forebay, case.forebay)):
                    with Gauge(device) as gauge:
                        started = time.perf_counter()
                        made = take()
                        side.rates.append(case.count / (time.perf_counter() - started))
                    side.busy.append(gauge.busy)
                    side.bytes.append(gauge.most)
                    _compare(case, made, expected)
            console.print(f"{case.name}: {case.ratio:.3f}")
            measured.append(case)
    return measured


def _best_loop(
    place: Place, data: Any, batch: int, net: Any, names: Any, collate: Any = None
) -> tuple[int, Take]:  # fmt: skip
    """The quickest number of workers, and a loop with so many."""
    cores, dtype = len(os.sched_getaffinity(0)), torch.bfloat16
    found: tuple[float, int, Any] | None = None
    tried = [n for n in WORKERS if n <= cores and (n >= 4 or cores < 8)]
    for workers in tried[:1] if place.small else tried:
        loader = make_loader(data, batch, workers, place.cuda, collate)

        def take(loader: Any = loader) -> NDArray[Any]:
            return loop(net, loader, names, place.folder / "loop.parquet", place.device, dtype)

        take()  # starts its processes
        started = time.perf_counter()
        take()
        took = time.perf_counter() - started
        if found is None or took < found[0]:
            found = took, workers, take
    assert found is not None  # noqa: S101 - there is a core
    return found[1], found[2]


def _vectors(column: Any) -> NDArray[Any]:
    values: NDArray[Any] = column.combine_chunks().flatten().to_numpy()
    return values.reshape(len(column), -1)


def _compare(case: Case, made: NDArray[Any], expected: NDArray[Any]) -> None:
    if made.shape != expected.shape or not np.allclose(made, expected, atol=case.close, rtol=case.close):
        raise SystemExit(f"{case.name}: a result differs from the loop's")


def device_name(device: str, small: bool = False) -> str:
    """What the device calls itself, and whether this was only a try."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return f"{name} (tiny networks, a try)" if small else name


HEADER = ("case", "by hand, per s", "forebay, per s", "ratio", "busy", "memory, GB")


def cells(case: Case) -> list[str]:
    """A table's row: of busy and memory both sides', by hand first."""
    rates = (f"{statistics.median(side.rates):,.0f}" for side in (case.hand, case.forebay))
    busy = " / ".join(f"{statistics.median(side.busy):.0%}" for side in (case.hand, case.forebay))
    held = " / ".join(f"{max(side.bytes) / 1e9:.1f}" for side in (case.hand, case.forebay))
    return [f"{case.name}: {case.about}", *rates, f"{case.ratio:.3f}", busy, held]


def table(measured: list[Case], where: str) -> Table:
    """Medians and ratios."""
    shown = Table(title=f"Forebay and a loop by hand on {where}", title_justify="left")
    for column in HEADER:
        shown.add_column(column, justify="left" if column == "case" else "right")
    for case in measured:
        shown.add_row(*cells(case))
    return shown


def as_json(measured: list[Case], where: str) -> str:
    """One line with everything measured."""
    cases = {c.name: {"by hand": vars(c.hand), "forebay": vars(c.forebay), "ratio": c.ratio} for c in measured}
    return json.dumps({"device": where, "torch": torch.__version__, "cases": cases})


def write(measured: list[Case], where: str, path: Path) -> None:
    """The table as a page."""
    lines = [
        f"# Benchmark on {where}",
        "",
        f"`python -m bench.gpu`, {datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}.",
        "",
    ]
    rows = [HEADER, ("---",) * len(HEADER), *map(cells, measured)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n", encoding="utf-8")


def main(
    device: Annotated[str, typer.Option(help="cuda, cuda:1, or cpu.")] = "cuda",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often each side runs.")] = 3,
    small: Annotated[bool, typer.Option("--small", help="Tiny networks and few rows: to try the script.")] = False,
    docs: Annotated[Path | None, typer.Option(help="Write the table to this file.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Measure what people do on a GPU, by Forebay and by hand, in turn, in one run.

    Example: `python -m bench.gpu --rounds 5 --docs docs/explain/benchmark-gpu.md`
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
