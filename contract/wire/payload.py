"""A job's input and result as bytes. An input is the list of its rows and whether the user sent a batch; a result is the
value itself, stacked again for a batch.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from forebay.contract.errors import InvalidInput
from forebay.contract.signature import Row
from forebay.contract.wire import codec


def pack_input(rows: Sequence[Row], batched: bool) -> bytes:
    """The rows of one job. If it is `batched`, its result gets a leading batch dimension."""
    return codec.encode([batched, list(rows)])


def unpack_input(data: bytes) -> tuple[list[Row], bool]:
    """The rows and the flag; InvalidInput when the bytes are not an input."""
    value = codec.decode(data)
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], bool) and isinstance(value[1], list)):
        raise InvalidInput("these bytes are not a job's input")
    return value[1], value[0]


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
