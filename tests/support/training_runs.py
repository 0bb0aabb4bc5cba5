"""Training runs for tests: a data set written down, a run in this process, and its artifact served."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from forebay.contract.model import ModelVersion
from forebay.contract.requests.batch import InputFile
from forebay.contract.requests.request import decode, encode
from forebay.contract.requests.training import (
    ARTIFACT_FOLDER,
    BASE_FOLDER,
    RESUME_FILE,
    DataSummary,
    Event,
    Point,
    Saved,
    Trained,
    TrainRequest,
)
from forebay.contract.signature import Signature
from forebay.worker.runtimes import get_runtime
from forebay.worker.runtimes.recipe import RecipeModel
from forebay.worker.trainer.run import train


@dataclass
class Run:
    """A run that has ended, and where it ran."""

    folder: Path
    events: list[Event]

    @property
    def trained(self) -> Trained:
        assert isinstance(self.events[-1], Trained)
        return self.events[-1]

    @property
    def data(self) -> DataSummary:
        assert isinstance(self.events[0], DataSummary)
        return self.events[0]

    @property
    def saved(self) -> list[Saved]:
        return [event for event in self.events if isinstance(event, Saved)]

    def points(self, split: str) -> list[Point]:
        return [event for event in self.events if isinstance(event, Point) and event.split == split]

    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / ARTIFACT_FOLDER / "weights.safetensors")

    def served(self, allowed: tuple[str, ...] = ()) -> tuple[RecipeModel, ModelVersion]:
        made = self.trained
        signature = Signature.parse(made.inputs, made.outputs)
        spec = ModelVersion("m", 1, made.runtime, "", "folder", 0, signature, options=made.options)
        return cast(
            RecipeModel, get_runtime(spec.runtime, allowed).load(self.folder / ARTIFACT_FOLDER, "cpu", spec)
        ), spec


def npz(folder: Path, **columns: Any) -> tuple[InputFile, ...]:
    """A data set of these columns."""
    path = folder / "data.npz"
    np.savez(path, **columns)
    return (InputFile(str(path), path.stat().st_size),)


def request(recipe: str, files: tuple[InputFile, ...], target: str | None, **more: Any) -> TrainRequest:
    """A request for an .npz data set, or of the format that `more` names."""
    return msgspec.structs.replace(TrainRequest(recipe, files, "npz", target), **more)


def run(
    asked: TrainRequest, resume: Path | None = None, allowed: tuple[str, ...] = (), base: Path | None = None
) -> Run:
    """The request in this process, in a folder of its own next to its data; `base` is the model that it adapts."""
    folder = Path(tempfile.mkdtemp(dir=Path(asked.files[0].path).parent))
    if base is not None:
        (folder / BASE_FOLDER).symlink_to(base)
    if resume is not None:
        shutil.copy(resume, folder / RESUME_FILE)
    events: list[Event] = []
    with quiet():
        train(folder, decode(encode(asked), TrainRequest), events.append, allowed=allowed)
    return Run(folder, events)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that Lightning gives of itself; the trainer process leaves them out too.

    On one thread: on a busy machine several spend their time waiting for one another.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)


def serve(model: RecipeModel, spec: ModelVersion, columns: Mapping[str, Any]) -> list[Any]:
    """Rows of these columns, as a worker checks and runs them."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [spec.signature.output(row) for row in model.predict([spec.signature.row(row) for row in rows])]


def columns_of(rows: list[Any]) -> dict[str, list[Any]]:
    """Rows `{"label": …, "probabilities": …}` as a Scorer takes them."""
    return {name: [row[name] for row in rows] for name in rows[0]}
