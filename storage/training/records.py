"""What goes into and comes out of TrainingStore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from forebay.contract.job import JobState
from forebay.contract.requests.training import DataSummary


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved state of a run in the blob store."""

    step: int
    epoch: int
    attempt: int
    blob: str
    bytes: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured at one step over one split of the data. `values` by metric; None is a value that is no number."""

    split: str
    step: int
    epoch: int
    at: datetime
    values: Mapping[str, float | None]
    rows_per_s: float | None


class Running(NamedTuple):
    """How far a training job is that runs: what it told of its last step of training, None before the first."""

    id: str
    model: str
    epoch: int | None
    loss: float | None
    rows_per_s: float | None
    silent_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """A training job that has begun. `request` is the job's, without its files; `steps` those planned in all.

    `version`, `metrics` (on held-out rows), `confusion`, `promoted` and `verdict` are those of the end, None before it.
    `resumed` counts how often it went on from a checkpoint.
    """

    id: str
    model: str
    recipe: str
    state: JobState
    request: Mapping[str, Any]
    resumed: int
    steps: int | None
    data: DataSummary | None
    version: int | None
    metrics: Mapping[str, float | None] | None
    confusion: Sequence[Sequence[int]] | None
    promoted: bool | None
    verdict: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Evaluation(msgspec.Struct, frozen=True):
    """How well a version did on a data set. `confusion` counts rows by true and then by predicted class.

    `rows` were compared; `failed` others could not be read, run, or had no target. `ms_per_row` is the device's time, in batches.
    `warning` tells why the metrics are too good to be true, where the version was trained on these files.
    """

    id: str
    model: str
    version: int
    dataset: str
    sha256: str
    rows: int
    metrics: Mapping[str, float | None]
    confusion: Sequence[Sequence[int]] | None
    classes: Sequence[str] | None
    ms_per_row: float
    failed: int = 0
    at: datetime | None = None
    warning: str = ""


def evaluation_value(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as the value that its job's result holds."""
    value: dict[str, Any] = msgspec.to_builtins(evaluation)
    return value


def evaluation_of(value: Mapping[str, Any]) -> Evaluation:
    """The evaluation again."""
    return msgspec.convert(value, Evaluation)
