"""`python -m bench.training`: a trainer process against the same Lightning script as one writes it by hand.

Both are processes of their own: same images, same split, same network, loss, optimizer, batches and epochs, each validated after
every epoch. What the trainer does besides (checks, hashes, points, the best state, checkpoints, the artifact) is its overhead.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from rich.console import Console

from forebay.contract.requests.batch import InputFile
from forebay.contract.requests.request import encode
from forebay.contract.requests.training import EVENTS_FILE, REQUEST_FILE, TrainRequest

SIDE, CLASSES = 16, 10


class Elapsed(NamedTuple):
    """Seconds on the clock, and of processors: on a machine that others use, only the latter compare."""

    wall: float
    cpu: float


LIGHTNING_SCRIPT = """
import sys
import warnings
import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from forebay.worker.trainer.recipes.images import Convolutions

warnings.simplefilter("ignore")
path, epochs = sys.argv[1], int(sys.argv[2])
data = np.load(path)
images, labels = torch.from_numpy(data["image"])[:, None], torch.from_numpy(data["label"])
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
held = len(labels) // 5
train, validation = order[held:], order[: held // 2]
mean, deviation = images[train].mean(), images[train].std()
images = (images - mean) / deviation


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Convolutions((1, *images.shape[2:]), (32, 64), (128,), 10, 0.0)
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch, index):
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.accuracy(self.net(batch[0]), batch[1])
        self.log("accuracy", self.accuracy, on_epoch=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


pl.seed_everything(0)
trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, enable_model_summary=False)
trainer.fit(Module(), DataLoader(TensorDataset(images[train], labels[train]), 64, shuffle=True),
            DataLoader(TensorDataset(images[validation], labels[validation]), 256))
"""


def write_images(folder: Path, rows: int) -> Path:
    """Images of ten noisy patterns."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, rows)
    patterns = rng.normal(size=(CLASSES, SIDE, SIDE))
    images = patterns[labels] + rng.normal(scale=2.0, size=(rows, SIDE, SIDE))
    path = folder / "data.npz"
    np.savez(path, image=images.astype(np.float32), label=labels)
    return path


def run_script(data: Path, epochs: int) -> Elapsed:
    """What the script took."""
    return _timed([sys.executable, "-c", LIGHTNING_SCRIPT, str(data), str(epochs)])


def run_trainer(data: Path, epochs: int, folder: Path) -> Elapsed:
    """What the trainer process took."""
    folder.mkdir()
    files = (InputFile(str(data), data.stat().st_size),)
    asked = TrainRequest(
        "image-classifier",
        files,
        "npz",
        "label",
        params={"epochs": epochs, "batch_size": 64},
        checkpoint_minutes=1,
    )
    (folder / REQUEST_FILE).write_bytes(encode(asked))
    elapsed = _timed([sys.executable, "-m", "forebay.worker.trainer.process", str(folder), "--device", "cpu"])
    end = json.loads((folder / EVENTS_FILE).read_text().splitlines()[-1])
    if end["event"] != "trained":
        raise SystemExit(f"the trainer ended with {end}")
    return elapsed


def _timed(command: list[str]) -> Elapsed:
    started, before = time.perf_counter(), _processor_s()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return Elapsed(time.perf_counter() - started, _processor_s() - before)


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(
    rows: Annotated[int, typer.Option(min=100, help="Images in the data set.")] = 20_000,
    epochs: Annotated[int, typer.Option(min=1, help="How long both train.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often each runs, in turn.")] = 3,
) -> None:
    """Wall time of a training run, Forebay's trainer against Lightning by hand."""
    console, hand, ours = Console(), [], []
    with tempfile.TemporaryDirectory() as name:
        data = write_images(Path(name), rows)
        for i in range(rounds):
            hand.append(run_script(data, epochs))
            ours.append(run_trainer(data, epochs, Path(name) / str(i)))
            console.print(f"round {i + 1} of {rounds}: by hand {_described(hand[-1])}, trainer {_described(ours[-1])}")
    for what in Elapsed._fields:
        ratios = [getattr(one, what) / getattr(other, what) for one, other in zip(ours, hand, strict=True)]
        console.print(f"trainer / by hand, {what}: {statistics.median(ratios):.3f}")


def _described(elapsed: Elapsed) -> str:
    return f"{elapsed.wall:.1f} s ({elapsed.cpu:.1f} s of processors)"


if __name__ == "__main__":
    typer.run(main)
