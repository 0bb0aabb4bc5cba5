"""Training jobs as both ends see them: what is to be trained, on which data, how it is going, and what came out.

The trainer is a process of its own that knows neither ledger nor queue: it reads a TrainRequest from a folder and tells what
happens as events, one line of JSON each. Knows nothing of torch, Arrow or SQL.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import InputFile

TRAIN, VALIDATION, TEST = "train", "validation", "test"  # the splits of a data set; `test` is what is held out

# In a trainer's folder: what it reads ...
REQUEST_FILE, RESUME_FILE = "request.json", "resume.ckpt"
# ... and what it writes.
EVENTS_FILE, CHECKPOINT_FOLDER, ARTIFACT_FOLDER = "events.jsonl", "checkpoints", "artifact"

# Of each metric that a run may be judged by: whether more is better.
METRICS: Mapping[str, bool] = {
    "loss": False, "accuracy": True, "precision": True, "recall": True, "f1": True, "auroc": True,
    "mae": False, "rmse": False, "r2": True,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Split:
    """How rows are parted. `by` is `ratio` (each row by itself), `column` (its values are train, validation and test), or
    `key` (rows of equal value in `column` stay together). `validation` and `test` are shares of all rows.
    """  # fmt: skip

    by: str = "ratio"
    column: str | None = None
    validation: float = 0.1
    test: float = 0.2


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """When a run saves its state: after each `steps` steps or `minutes` minutes, whichever comes first (None: not by that);
    the last `keep` are kept.
    """  # fmt: skip

    steps: int | None = None
    minutes: float | None = 5.0
    keep: int = 3


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What a training job is to do, as its payload holds it.

    `features` are the columns to learn from (none named: all but the target, and but the split's). `missing` says what becomes
    of missing values: `drop`, `mean` or `constant:VALUE`. `params` are those of the recipe and of the loop. `metric` is what the
    best state and the alias are judged by (None: the recipe's own); `alias` moves to the new version when it is better by that
    than the version it names. `nproc` processes run on each of `nodes` machines.
    """

    recipe: str
    files: tuple[InputFile, ...]
    format: str
    target: str | None = None
    features: tuple[str, ...] = ()
    missing: str = "drop"
    split: Split = Split()
    seed: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    metric: str | None = None
    alias: str | None = None
    checkpoints: Checkpoints = Checkpoints()
    nproc: int = 1
    nodes: int = 1
    max_batch_size: int = 256
    resources: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def dump(self) -> bytes:
        """The request as bytes."""
        return json.dumps(asdict(self) | {"files": [[f.path, f.size] for f in self.files]}).encode()

    @classmethod
    def load(cls, data: bytes) -> TrainRequest:
        """From those bytes; InvalidInput when they are no request."""
        try:
            given = json.loads(data)
            made = {
                "files": tuple(InputFile(path, size) for path, size in given["files"]),
                "features": tuple(given["features"]),
                "split": Split(**given["split"]),
                "checkpoints": Checkpoints(**given["checkpoints"]),
            }
            return cls(**given | made)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidInput(f"these bytes are no training request: {type(error).__name__}") from error

    def fingerprint(self, model: str) -> str:
        """Equal for requests that ask for the same."""
        return hashlib.sha256(json.dumps(asdict(self) | {"model": model}, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What the trainer found in its data: rows per split, a hash of the content, and what a user should know of it.

    `dropped` rows had missing values; `leaked` rows of the validation and test splits are also in the training split.
    `classes` are the labels in the order of the outputs, () for numbers.
    """

    rows: Mapping[str, int]
    sha256: str
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    dropped: int = 0
    leaked: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured at one step of a run, over one split. `values` by metric; `rows_per_s` and `eta_s` when known."""

    step: int
    epoch: int
    split: str
    values: Mapping[str, float]
    rows_per_s: float | None = None
    eta_s: float | None = None
    steps: int | None = None  # in all, as planned


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that lies complete in the trainer's folder, at `path` within it."""

    step: int
    epoch: int
    path: str


@dataclass(frozen=True, slots=True)
class Trained:
    """The end of a run that went well: held-out metrics, and the artifact (a folder of the trainer's folder) to register.

    `inputs` and `outputs` are the signature of one sample. `epochs` and `steps` are those done, `stopped_early` before the
    planned ones. `confusion` counts rows by true class and then by predicted class.
    """

    metrics: Mapping[str, float]
    runtime: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 0
    steps: int = 0
    stopped_early: bool = False
    confusion: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The end of a run that cannot go well, however often it is tried: the error's class and its words."""

    type: str
    message: str


Event = DataSummary | Point | Saved | Trained | Refused
_EVENTS: Mapping[str, type[Event]] = {
    "data": DataSummary, "point": Point, "saved": Saved, "trained": Trained, "refused": Refused,
}  # fmt: skip
_NAMES = {kind: name for name, kind in _EVENTS.items()}


def dump_event(event: Event) -> str:
    """An event as its line, without the newline. Numbers that are not finite become null: JSON has none."""
    return json.dumps({"event": _NAMES[type(event)]} | _finite(asdict(event)), allow_nan=False)


def load_event(line: str) -> Event | None:
    """The event of a line; None for a line that is none, such as one that a killed process has cut off."""
    try:
        given = json.loads(line)
        made = _EVENTS[given.pop("event")](**given)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if isinstance(made, DataSummary):
        return DataSummary(**asdict(made) | {"features": tuple(made.features), "classes": tuple(made.classes)})
    return made


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value


def better(metric: str, one: float, other: float) -> bool:
    """Whether `one` is a better value of `metric` than `other`; InvalidInput for a metric that nobody knows."""
    if metric not in METRICS:
        raise InvalidInput(f"there is no metric {metric!r}; there are {', '.join(METRICS)}")
    return one > other if METRICS[metric] else one < other


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a trained version comes from, as its metadata holds it under `lineage`."""

    job: str
    recipe: str
    params: Mapping[str, Any]
    files: tuple[str, ...]
    sha256: str  # of the data
    rows: Mapping[str, int]
    seed: int
    code: str  # the version of Forebay that trained it
    parent: str | None = None  # the version it was compared with or grew from
