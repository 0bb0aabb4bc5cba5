"""What a runtime is, and which one a name means.

A runtime turns an artifact into a Model; a Model turns rows into as many rows. This imports no runtime's library: torch is
imported by the runtimes themselves. Batching, and splitting a batch around a guilty row, is done by the engine.

Others add runtimes through the entry-point group `forebay.runtimes`: a class that takes `allowed=` (the operator's list
of Python import paths) and has `load`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

from forebay.contract.errors import MissingExtra
from forebay.contract.model import ModelVersion
from forebay.contract.runtimes import GROUP, missing
from forebay.contract.signature import Row
from forebay.worker.allowed import find_plugin

T = TypeVar("T")

BUILT_IN = {
    "torch-export": "forebay.worker.runtimes.torch_export:TorchExport",
    "safetensors": "forebay.worker.runtimes.safetensors:Safetensors",
    "python": "forebay.worker.runtimes.python:Python",
    "sentence-transformers": "forebay.worker.runtimes.sentence_transformers:SentenceTransformers",
    "text-generation": "forebay.worker.runtimes.generation.runtime:TextGeneration",
    "transformers": "forebay.worker.runtimes.huggingface.runtime:Transformers",
    "recipe": "forebay.worker.runtimes.recipe:Recipe",
    "onnx": "forebay.worker.runtimes.onnx:Onnx",
    "openai": "forebay.worker.runtimes.remote.runtime:OpenAI",
}


class Piece(NamedTuple):
    """Text that a model has generated and will not take back: of choice `choice` of row `row`, from character `start` on."""

    row: int
    choice: int
    start: int
    text: str


@dataclass(frozen=True, slots=True)
class Meanwhile(Generic[T]):
    """What is done while rows run side by side: `tell` gets the text of those that are not finished, and `more(places)` gives up
    to so many items that may join them now; mostly none, and at once.
    """  # fmt: skip

    tell: Callable[[Sequence[tuple[T, Piece]]], None] = lambda _: None
    more: Callable[[int], Sequence[T]] = lambda _: ()


class Interrupted(Exception):
    """The row is not finished: nobody wants it any more, or this process has to stop."""


@dataclass(slots=True)
class Progress:
    """What became of rows since one last looked: outputs or errors by row, and the tokens of those.

    Of rows that run elsewhere: requests by outcome, and the seconds of those answered. Of rows that generate text: the pieces of
    it, the seconds to the first piece of a row, how many rows ran at once, the tokens that went through the model without and
    with padding, and the forward passes that failed, by rows and error, once it is known which rows were guilty.
    """  # fmt: skip

    outputs: dict[int, Any] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    first_texts: list[float] = field(default_factory=list)
    rows: int = 0
    tokens: int = 0
    padded: int = 0
    failures: list[tuple[int, Exception]] = field(default_factory=list)


class RunningRows(Protocol):
    """Rows of one version that run side by side; one thread waits for them. Those that others may join have `places() -> int`,
    how many may now, and `add(rows)`, which counts on from the rows that there are.
    """  # fmt: skip

    def wait(self, seconds: float) -> Progress:
        """What has ended since this was last called; after so many seconds, if need be, that nothing has."""

    def cancel(self, row: int) -> None:
        """The row is not wanted any more."""

    def close(self) -> None:
        """None is."""


class Model(Protocol):
    """A loaded version. It may also have `preprocess(row)`, `postprocess(row)`, `cost(row) -> int` (tokens, say: rows of
    like cost then share a batch), `nbytes() -> int`, `sample_row()`, a row to warm up with, and `prepare(rows)` with
    `run(prepared)`, the two halves of `predict`: the next batch is then prepared while one runs. With `count_tokens(rows)`
    it says how many tokens it reads of rows, or None, for jobs that ask for their usage. With
    `predict_columns({input: array (batch, *shape)}) -> {output: array (batch, *shape)}` batch jobs hand it whole columns. With
    `run_each(rows, insist, at_once) -> RunningRows` rows run side by side, each given as it ends, and batches are not cut: on
    this device at most `at_once()` run at once. With `insist` it tries again itself what may pass. With
    `differentiable(rows) -> Differentiable` (tensors.py) its predictions are explained by their gradients.
    """  # fmt: skip

    def predict(self, rows: Sequence[Row]) -> Sequence[Row]:
        """One row per row, in order: the value itself for one output, `{name: value}` for several."""


class Runtime(Protocol):
    """How a version's artifact is loaded and run."""

    def load(self, path: Path | None, device: str, spec: ModelVersion) -> Model:
        """The model on `device` ("cpu", "cuda:0"); ModelRefused when unsafe, ModelLoadFailed when it does not work."""


def get_runtime(name: str, allowed: Sequence[str] = ()) -> Runtime:
    """The runtime called `name`; InvalidInput listing the known ones, MissingExtra when its library is missing."""
    if (need := missing(name)) is not None:
        raise MissingExtra(f"runtime {name!r} needs {need[0]}", need[1])
    return cast(Runtime, find_plugin(GROUP, name, BUILT_IN)(allowed=tuple(allowed)))
