"""A job's input and result as bytes. An input is the list of its rows, whether the user sent a batch, whether its usage is to be
told, and its text while it runs; a result is the value itself, stacked again for a batch.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from forebay.contract.errors import InvalidInput
from forebay.contract.signature import Row
from forebay.contract.wire import codec


class PackedRows(NamedTuple):
    """The rows of one job. If it is `batched`, its result gets a leading batch dimension; with `usage` it is
    `{"output": the value, "usage": {"tokens": how many the model read, None where its runtime does not count them}}`. With
    `stream` its client is told of the text that it generates, where its runtime tells it, while it runs.
    """  # fmt: skip

    batched: bool
    rows: list[Row]
    usage: bool = False
    stream: bool = False


def pack_input(rows: Sequence[Row], batched: bool, usage: bool = False, stream: bool = False) -> bytes:
    """The rows of one job."""
    return b"".join(pack_parts(rows, batched, usage, stream))


def pack_parts(rows: Sequence[Row], batched: bool, usage: bool = False, stream: bool = False) -> codec.Parts:
    """The same in parts, which may be views of the rows' arrays."""
    marks = [usage, stream] if stream else [usage] if usage else []
    return codec.encode_parts([batched, list(rows), *marks])


def unpack_input(data: bytes) -> PackedRows:
    """What was packed; InvalidInput when the bytes are not an input."""
    value = codec.decode(data)
    known = [bool, list, bool, bool]
    if not isinstance(value, list) or len(value) < 2 or [type(part) for part in value] != known[: len(value)]:
        raise InvalidInput("these bytes are not a job's input")
    return PackedRows(*value)


def join_rows(rows: Sequence[Any]) -> Any:
    """The results of a batched job as one value: arrays of equal dtype and shape are stacked, others are listed.

    Dicts of the same keys become one dict of joined values.
    """
    first = rows[0]
    if isinstance(first, dict) and all(isinstance(row, dict) and row.keys() == first.keys() for row in rows):
        return {name: join_rows([row[name] for row in rows]) for name in first}
    if all(isinstance(r, np.ndarray | np.generic) and r.shape == first.shape and r.dtype == first.dtype for r in rows):
        return np.stack(rows)  # (batch, *shape)
    return list(rows)
