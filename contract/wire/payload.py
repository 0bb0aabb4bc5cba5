"""A job's input and result as bytes. An input is the list of its rows, whether the user sent a batch, whether its usage is to be
told, and its text while it runs; a result is the value itself, stacked again for a batch.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.signature import Row
from forebay.contract.values import normal_array
from forebay.contract.wire import codec

MOST_ALIKE = 1 << 16  # bytes of an input that is looked at for what the next one may have in common with it
TWO_PARTS, THREE_PARTS = 0x92, 0x93  # how MessagePack begins a list of so many


class PackedRows(NamedTuple):
    """The rows of one job. If it is `batched`, its result gets a leading batch dimension; with `usage` it is
    `{"output": the value, "usage": {"tokens": how many the model read, None where its runtime does not count them}}`. With
    `stream` its client is told of the text that it generates, where its runtime tells it, while it runs. `explain` is the
    ExplainRequest of a job whose rows are to be explained, as plain data.
    """  # fmt: skip

    batched: bool
    rows: list[Row]
    usage: bool = False
    stream: bool = False
    explain: Mapping[str, Any] | None = None


def pack_input(rows: Sequence[Row], batched: bool, usage: bool = False, stream: bool = False) -> bytes:
    """The rows of one job."""
    return b"".join(pack_parts(rows, batched, usage, stream))


def pack_parts(
    rows: Sequence[Row],
    batched: bool,
    usage: bool = False,
    stream: bool = False,
    explain: Mapping[str, Any] | None = None,
) -> codec.Parts:
    """The same in parts, which may be views of the rows' arrays."""
    marks = [usage, stream, explain] if explain else [usage, stream] if stream else [usage] if usage else []
    return codec.encode_parts([batched, list(rows), *marks])


def pack_inputs(name: str, column: NDArray[Any], usage: bool = False) -> list[bytes]:
    """Of each row of an array in C order, for the input `name`, what `pack_input` makes of it: they differ only in its bytes."""
    first = pack_input([{name: column[0, ...]}], False, usage)
    size, end = column[0, ...].nbytes, len(first) - usage  # behind the array there is nothing else
    head, tail, data = first[: end - size], first[end:], normal_array(column).tobytes()
    return [head + data[start : start + size] + tail for start in range(0, len(data), size)]


def unpack_input(data: bytes) -> PackedRows:
    """What was packed; InvalidInput when the bytes are not an input."""
    value = codec.decode(data)
    known = [bool, list, bool, bool, dict]
    if not isinstance(value, list) or len(value) < 2 or [type(part) for part in value] != known[: len(value)]:
        raise InvalidInput("these bytes are not a job's input")
    return PackedRows(*value)


class InputReader:
    """Reads inputs one after the other. What `pack_inputs` made differs only in the numbers of one array: of the second and
    later ones only these are looked at.
    """  # fmt: skip

    def __init__(self) -> None:
        self._head, self._tail, self._length = b"", b"", -1
        self._like: NDArray[Any] = np.empty(0)
        self._name, self._usage = "", False

    def read(self, data: bytes) -> PackedRows:
        """What `unpack_input` gives."""
        if len(data) != self._length or not (data.startswith(self._head) and data.endswith(self._tail)):
            packed = unpack_input(data)
            self._note(data, packed)
            return packed
        like = self._like
        array = np.frombuffer(data, like.dtype, like.size, len(self._head)).reshape(like.shape).copy()
        return PackedRows(False, [{self._name: array}], self._usage)

    def _note(self, data: bytes, packed: PackedRows) -> None:
        """Its form, if it is one row of one array of numbers: then only the mark of `usage` may stand behind these."""
        self._length = -1
        if (
            len(data) > MOST_ALIKE
            or data[0] not in (TWO_PARTS, THREE_PARTS)
            or packed.batched
            or len(packed.rows) != 1
            or type(packed.rows[0]) is not dict
            or len(packed.rows[0]) != 1
        ):
            return
        [(self._name, array)] = packed.rows[0].items()
        if type(array) is not np.ndarray or array.dtype.kind not in "iuf" or not array.size:
            return
        raw, end = array.tobytes(), len(data) - (data[0] == THREE_PARTS)
        if data[end - len(raw) : end] == raw:
            self._head, self._tail, self._length = data[: end - len(raw)], data[end:], len(data)
            self._like, self._usage = array, packed.usage


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
