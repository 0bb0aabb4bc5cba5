"""The first runs of a model that has just been loaded: a failed one is a failed load. Knows models by protocol only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import structlog

from forebay.contract.errors import ForebayError, ModelLoadFailed, Transient
from forebay.contract.model import ModelVersion
from forebay.contract.signature import ARRAY_DTYPES, Field, Row
from forebay.worker.execution.ceilings import is_out_of_memory
from forebay.worker.runtimes import Model

log = structlog.get_logger()

_WARM_UPS = 2  # the first allocates and picks kernels, the second runs as later ones will
_FREE_DIMENSIONS = (1, 32, 224)  # sizes to try for a free dimension: too small for a model says nothing about it
_UNKNOWABLE = ("bytes", "json")  # no made-up value of these means anything to a model


class WrongCount(ForebayError):
    """A model gave another number of rows than it got."""


def warm_up(model: Model, spec: ModelVersion, example: Row | None = None) -> bool:
    """Runs the row that was registered, the model's own, or made-up ones; whether one passed.

    ModelLoadFailed when one of the first two fails, when there is no room for a single row, or when a row gives no row; the
    model's own Transient passes. A model may well refuse zeros that no user would send: that is only a warning.
    """
    failure: Exception | None = None
    for row in sample_rows(model, spec) if example is None else [example]:
        try:
            for _ in range(_WARM_UPS):
                run_row(model, row)
        except Transient:  # says nothing about the model
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises, it cannot serve
            failure = failure or error
        else:
            return True
    if failure is None:
        return False
    cause = f"{type(failure).__name__}: {failure}"
    own = hasattr(model, "sample_row") and not getattr(model, "sample_made_up", False)
    if example is not None or own or isinstance(failure, WrongCount) or is_out_of_memory(failure):
        row = "its own row" if own else "a row of zeros"
        row = row if example is None else "the example it was registered with"
        raise ModelLoadFailed(f"{spec.ref} failed its warm-up on {row}: {cause}") from failure
    log.warning(
        "warm_up_failed", model=spec.ref, reason=cause,
        note="a made-up row of zeros; rows of jobs may do. Register an example to warm up with",
    )  # fmt: skip
    return False


def run_row(model: Model, row: Row) -> None:
    preprocess, postprocess = getattr(model, "preprocess", None), getattr(model, "postprocess", None)
    made = list(model.predict([preprocess(row) if preprocess else row]))
    if len(made) != 1:
        raise WrongCount(f"predict gave {len(made)} rows for 1")
    if postprocess:
        postprocess(made[0])


def sample_rows(model: Model, spec: ModelVersion) -> Iterator[Row]:
    """Rows to try until one passes: the model's own, or zeros with free dimensions of several sizes."""
    own = getattr(model, "sample_row", None)
    fields = spec.signature.inputs
    if own is not None:
        yield own()
    elif fields is not None and not any(field.dtype in _UNKNOWABLE for field in fields):
        free = any(-1 in field.shape for field in fields)
        for size in _FREE_DIMENSIONS if free else _FREE_DIMENSIONS[:1]:
            yield {field.name: _zeros(field, size) for field in fields}


def _zeros(field: Field, free: int) -> Any:
    if field.dtype == "str":
        return "warm"
    return np.zeros([free if length == -1 else length for length in field.shape], ARRAY_DTYPES[field.dtype])
