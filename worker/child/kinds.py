"""Which handler runs jobs of which kind: the one table of kinds. A handler is imported when the first of its jobs comes.

A handler is made of a ChildContext, and has one method, `run(claimed, attempts)`: it brings each of the claimed jobs to an end,
or postpones or releases it, by `attempts`. A new kind of job is a line here, and a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Protocol, cast

from forebay.contract.errors import MissingExtra
from forebay.contract.job import JobKind
from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.context import ChildContext


class Handler(Protocol):
    """Runs the claimed jobs of its kinds."""

    def run(self, claimed: Sequence[ClaimedJob], attempts: Attempts) -> None:
        """Run these jobs, each to its end, or as far as this process may."""


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """Where a handler is found, what its jobs are called, and the packages it needs, with the extra that brings them."""

    path: str
    jobs: str
    needs: tuple[str, ...] = ()
    extra: str = ""

    def make(self, context: ChildContext) -> Handler:
        """The handler; MissingExtra, with what to install, when it lacks a package."""
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            raise MissingExtra(f"the worker lacks {', '.join(missing)}, which {self.jobs} need", self.extra)
        return cast(Handler, resolve_name(self.path)(context))


_KINDS = "forebay.worker.kinds"
_PREDICT = HandlerSpec(f"{_KINDS}.predict:PredictHandler", "predictions")
_BATCH = HandlerSpec(f"{_KINDS}.batch.handler:BatchHandler", "batch jobs", ("pyarrow",), "batch")
_EVALUATE = HandlerSpec(
    f"{_KINDS}.evaluate.handler:EvaluateHandler", "evaluations", ("pyarrow", "torchmetrics"), "train"
)
_EXPLAIN = HandlerSpec(f"{_KINDS}.explain:ExplainHandler", "explanations", ("torch", "captum"), "explain")
_TRAIN = HandlerSpec(
    f"{_KINDS}.train.handler:TrainHandler", "training jobs", ("torch", "pytorch_lightning", "torchmetrics", "pyarrow"), "train"
)  # fmt: skip
_TUNE = HandlerSpec(f"{_KINDS}.tune.handler:TuneHandler", "tune jobs", ("optuna",), "tune")

_CONVERT = HandlerSpec(
    f"{_KINDS}.convert.handler:ConvertHandler", "conversions", ("torch", "onnx", "onnxruntime", "onnxscript"), "convert"
)

HANDLERS = {
    JobKind.PREDICT: _PREDICT,
    JobKind.BATCH: _BATCH,
    JobKind.SHARD: _BATCH,
    JobKind.EVALUATE: _EVALUATE,
    JobKind.BENCHMARK: HandlerSpec(f"{_KINDS}.benchmark:BenchmarkHandler", "benchmarks"),
    JobKind.REFERENCE: HandlerSpec(
        f"{_KINDS}.reference:ReferenceHandler", "references for drift", ("pyarrow",), "batch"
    ),
    JobKind.COMPRESS: HandlerSpec(
        f"{_KINDS}.compress.handler:CompressHandler", "compressions", ("torch", "safetensors"), "worker"
    ),
    JobKind.EXPLAIN: _EXPLAIN,
    JobKind.TRAIN: _TRAIN,
    JobKind.NODE: _TRAIN,
    JobKind.TUNE: _TUNE,
    JobKind.CONVERT: _CONVERT,
}
