"""Benchmark jobs as both ends see them: which batch sizes of a version are to be measured, and what was found."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct

from forebay.contract.requests.batch import BatchRequest
from forebay.contract.requests.request import Request

Threads = Annotated[int, Meta(ge=1, le=1024)]
# The runtimes that compute by torch: threads and dtype may be others than those of the worker and of the version.
TUNABLE = frozenset({"torch-export", "safetensors", "sentence-transformers", "recipe", "transformers"})
NEAR = 0.95  # of the most rows/s: from there on larger batches only take longer


class BenchmarkRequest(Request, frozen=True):
    """What is to be measured, as a job's payload holds it. `data` are rows to run; without it rows are made up."""

    max_rows: Annotated[int, Meta(ge=1, le=65_536, description="rows in the largest batch that is tried")] = 1024
    seconds: Annotated[float, Meta(gt=0, le=86_400, description="seconds that it may take, beside loading")] = 60.0
    max_latency_ms: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="milliseconds that the best batch may take")
    ] = None
    threads: Annotated[tuple[Threads, ...], Meta(description="also measure with so many threads, on a CPU")] = ()
    dtypes: Annotated[
        tuple[Literal["bfloat16", "float16"], ...],
        Meta(title="bfloat16 or float16, by comma", description="also measure when it computes in these"),
    ] = ()
    apply: Annotated[bool, Meta(description="make the best batch size the version's max_batch_size")] = False
    data: BatchRequest | None = None


class Point(Struct, frozen=True):
    """Batches of `rows` rows: the median time of one, the time of the slowest measured, and rows a second by the median."""

    rows: int
    latency_ms: float
    slowest_ms: float
    rows_per_s: float


class Curve(Struct, frozen=True):
    """The batch sizes measured with one number of threads (None: the device has none to choose) and in one dtype (None: as the
    artifact has it). `best` is the smallest size within NEAR of the most rows/s; `ended` says why no larger one was tried.
    """  # fmt: skip

    threads: int | None
    dtype: str | None
    points: tuple[Point, ...]
    best: int
    ended: str

    @property
    def best_point(self) -> Point:
        return next(point for point in self.points if point.rows == self.best)

    @property
    def name(self) -> str:
        """What sets it apart from other curves."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return ", ".join(filter(None, (threads, self.dtype))) or "as it is served"


class Benchmark(Struct, frozen=True):
    """What a benchmark found for a version on a kind of `device`. The first curve is of how the version is served there now;
    `applied` says whether its best batch size was made the version's. `rows` says which rows were run.
    """  # fmt: skip

    id: str
    model: str
    version: int
    device: str
    rows: str
    curves: tuple[Curve, ...]
    applied: bool = False
    at: datetime | None = None

    @property
    def best(self) -> int:
        """The best batch size as the version is served now."""
        return self.curves[0].best

    @property
    def faster(self) -> Curve | None:
        """The fastest of the other curves, if it is faster than the first."""
        return max((c for c in self.curves[1:] if _pace(c) > _pace(self.curves[0])), key=_pace, default=None)


def _pace(curve: Curve) -> float:
    return curve.best_point.rows_per_s
