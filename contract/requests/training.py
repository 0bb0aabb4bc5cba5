"""Training jobs as both ends see them: what is to be trained, on which data, how it is going, and what came out.

The trainer is a process that knows neither ledger nor queue: it reads a TrainRequest from a folder and writes what happens as
events, one line of JSON each. Knows nothing of torch, Arrow or SQL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from forebay.contract.drift.sketch import Reference
from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import InputFile
from forebay.contract.requests.request import Request

TRAIN, VALIDATION, TEST = "train", "validation", "test"  # the splits of a data set; `test` is what is held out

# In a trainer's folder: what it reads ...
REQUEST_FILE, RESUME_FILE, BASE_FOLDER = "request.json", "resume.ckpt", "base"
# ... and what it writes.
EVENTS_FILE, CHECKPOINT_FOLDER, ARTIFACT_FOLDER = "events.jsonl", "checkpoints", "artifact"

EXACT_MATCH = "exact_match"  # of evaluations only
# Of each metric that a run may be judged by: whether more is better.
METRICS: Mapping[str, bool] = {
    "loss": False, "accuracy": True, "precision": True, "recall": True, "f1": True, "auroc": True,
    "mae": False, "rmse": False, "r2": True, "perplexity": False, EXACT_MATCH: True,
}  # fmt: skip

MAX_INT = 2**31 - 1
SHARES = {VALIDATION: 0.1, TEST: 0.2}  # of all rows, when nothing is said
Share = Annotated[float, Meta(ge=0, lt=1)]


class Split(Struct, frozen=True, forbid_unknown_fields=True):
    """Which rows are for training, for validation and held out: by shares of all rows, or as the values of `column` say."""

    validation: Annotated[Share, Meta(description="share of rows that choose the best state")] = SHARES[VALIDATION]
    test: Annotated[Share, Meta(description="share of rows that are held out, to judge by")] = SHARES[TEST]
    column: (
        Annotated[str, Meta(description="column whose values are train, validation and test", min_length=1)] | None
    ) = None
    key: Annotated[str, Meta(description="column whose equal values stay together", min_length=1)] | None = None

    def __post_init__(self) -> None:
        """InvalidInput for fields that contradict one another."""
        if self.column is not None and self.key is not None:
            raise InvalidInput("give a column whose values are train, validation and test, or a key, not both")
        if self.column is not None and (self.validation, self.test) != (SHARES[VALIDATION], SHARES[TEST]):
            raise InvalidInput("the values of the column say which rows are which; leave validation and test out")
        if self.validation + self.test >= 1:
            raise InvalidInput(
                f"validation {self.validation:g} and test {self.test:g} leave no row to train on; give less than 1 in all"
            )

    @property
    def by(self) -> str | None:
        """The column that the split depends on, if any."""
        return self.column or self.key


class TrainRequest(Request, frozen=True):
    """What a training job is to do, as its payload holds it. `params` are those of the loop and of the recipe."""

    recipe: Annotated[
        str, Meta(min_length=1, description="what learns: a name of `forebay recipes`, or package.module:Recipe")
    ]
    files: Annotated[
        tuple[InputFile, ...],
        Meta(title="paths, globs, folders or URLs", description="the data set"),
    ]
    format: Annotated[
        str, Meta(title="a format that `batch` reads, or npz", description="of the files; told by their endings")
    ]
    target: Annotated[str | None, Meta(description="column to learn; `label` of a folder of images")] = None
    features: Annotated[tuple[str, ...], Meta(description="columns to learn from; none: all others")] = ()
    missing: Annotated[
        str,
        Meta(
            pattern="^(drop|mean|constant:.+)$",
            title="drop, mean or constant:VALUE",
            description="what becomes of missing values",
        ),
    ] = "drop"
    split: Split = Split()
    seed: Annotated[int, Meta(ge=0, le=MAX_INT, description="of the split and of the training")] = 0
    params: Annotated[Mapping[str, Any], Meta(description="parameters of the training loop and of the recipe")] = {}
    metric: Annotated[str | None, Meta(description="judges the best state and the alias; none: the recipe's own")] = (
        None
    )
    alias: Annotated[
        str | None, Meta(description="moves to the new version if that is better than the one it names")
    ] = None
    checkpoint_steps: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_INT)] | None,
        Meta(description="saves the state after so many steps; none: not by steps"),
    ] = None
    checkpoint_minutes: Annotated[
        Annotated[float, Meta(gt=0, le=1e6)] | None, Meta(description="saves the state after so many minutes")
    ] = 5.0
    checkpoint_keep: Annotated[int, Meta(ge=1, le=100, description="how many of the last saved states are kept")] = 3
    nproc: Annotated[int, Meta(ge=1, le=64, description="processes on each machine")] = 1
    nodes: Annotated[int, Meta(ge=1, le=64, description="machines")] = 1
    max_batch_size: Annotated[
        int, Meta(ge=1, le=65_536, description="rows the new version runs at once when it serves")
    ] = 256
    resources: Annotated[
        Mapping[str, float], Meta(description="what a machine needs to train the version and to serve it")
    ] = {}
    metadata: Annotated[Mapping[str, Any], Meta(description="kept with the version")] = {}

    def check_columns(self, there: Sequence[str]) -> None:
        """InvalidInput when the data set, which has the columns `there`, lacks one that is named, or has none to learn from."""
        listed = ", ".join(map(shown, there[:30])) + (f" and {len(there) - 30} more" if len(there) > 30 else "")
        target, features, split = self.target, self.features, self.split.by
        for what, column in [("target", target), *(("features", name) for name in features), ("split", split)]:
            if column is not None and column not in there:
                raise InvalidInput(f"{what}: there is no column {shown(column)}; there are {listed}")
        if target in features:
            raise InvalidInput(f"features: {shown(target)} is the target; leave it out of the features")
        if len(set(features)) < len(features):
            raise InvalidInput(f"features: a column is named twice: {shown(list(features))}")
        if not features and not set(there) - {target, split}:
            raise InvalidInput(f"features: there is no column but {listed} to learn from")


class DataSummary(Struct, frozen=True, tag="data", tag_field="event"):
    """What the trainer found in its data: rows per split, the hash of its files, and what a user should know of it.

    `dropped` rows had missing values; `leaked` rows of the validation and test splits are also in the training split.
    `classes` are the labels in the order of the outputs, () for numbers. `longer` examples of text were left out, for they have
    more tokens than `max_length` or the model's context.
    """  # fmt: skip

    rows: Mapping[str, int]
    sha256: str
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    dropped: int = 0
    leaked: int = 0
    longer: int = 0


class Point(Struct, frozen=True, tag="point", tag_field="event"):
    """What was measured at one step of a run, over one split: `values` by metric, None where one is not finite.

    `steps` are those planned in all; `rows_per_s` and `eta_s` are given when known.
    """

    step: int
    epoch: int
    split: str
    values: Mapping[str, float | None]
    rows_per_s: float | None = None
    eta_s: float | None = None
    steps: int | None = None


class Saved(Struct, frozen=True, tag="saved", tag_field="event"):
    """A checkpoint that lies complete in the trainer's folder, at `path` within it."""

    step: int
    epoch: int
    path: str


class Trained(Struct, frozen=True, tag="trained", tag_field="event"):
    """The end of a run that went well: held-out metrics, and the artifact (a folder of the trainer's folder) to register.

    `inputs` and `outputs` are the signature of one sample. `epochs` and `steps` are those done, `stopped_early` before the
    planned ones. `confusion` counts rows by true class and then by predicted class. `importance` is by how much the metric gets
    worse when a column is shuffled among held-out rows. Later rows are held against `reference`.
    """  # fmt: skip

    metrics: Mapping[str, float | None]
    runtime: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    options: Mapping[str, Any] = {}
    epochs: int = 0
    steps: int = 0
    stopped_early: bool = False
    confusion: Sequence[Sequence[int]] | None = None
    importance: Mapping[str, float] = {}
    reference: Reference | None = None


class Refused(Struct, frozen=True, tag="refused", tag_field="event"):
    """The end of a run that would fail however often it is tried: the error's class and message."""

    type: str
    message: str


Event = DataSummary | Point | Saved | Trained | Refused
_event: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def decode_event(line: bytes) -> Event | None:
    """The event of a line; None for a line that holds none, such as one that a killed process has cut off."""
    try:
        return _event.decode(line)
    except (msgspec.MsgspecError, UnicodeError):
        return None


def better(metric: str, one: float, other: float) -> bool:
    """Whether `one` is a better value of `metric` than `other`, as any is than NaN; InvalidInput for an unknown metric."""
    if metric not in METRICS:
        raise InvalidInput(f"there is no metric {metric!r}; there are {', '.join(METRICS)}")
    if math.isnan(other):
        return not math.isnan(one)
    return one > other if METRICS[metric] else one < other


class Lineage(Struct, frozen=True):
    """Where a trained version comes from, as its metadata holds it under `lineage`."""

    job: str
    recipe: str
    params: Mapping[str, Any]
    files: tuple[str, ...]
    sha256: str  # of the data
    rows: Mapping[str, int]
    seed: int
    code: str  # the version of Forebay that trained it
    parent: str | None = None  # the version it was held against, by the transaction that registers it
    tune: str | None = None  # the tune whose best trial it is
