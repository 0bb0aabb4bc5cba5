"""Tensors on the wire: from the JSON or the bytes of a request to NumPy arrays, and back.

What comes in is hostile: a tensor whose data is not exactly what its datatype and shape say is InvalidInput, by name. Nothing
is cast. A tensor of BYTES is an array of bytes objects here, one of BF16 an array of the same numbers as float32.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.numbers import exactly, flattened
from forebay.contract.references import described, shown
from forebay.contract.signature import ARRAY_DTYPES
from forebay.contract.values import MAX_DIMS, few_rows

Array: TypeAlias = NDArray[Any]

BYTES, BF16 = "BYTES", "BF16"
DATATYPES: Mapping[str, str] = {name: name.upper().replace("FLOAT", "FP") for name in ARRAY_DTYPES}  # float32: FP32
NUMERIC: Mapping[str, np.dtype[Any]] = {
    datatype: ARRAY_DTYPES[name].newbyteorder("<") for name, datatype in DATATYPES.items()
}
BINARY_ONLY = ("FP16", BF16)
_KNOWN = (*NUMERIC, BF16, BYTES)
_LENGTH = struct.Struct("<I")


def check_kind(datatype: str, shape: Sequence[int], where: str) -> None:
    """InvalidInput unless there is such a datatype, and such a shape."""
    if datatype not in _KNOWN:
        raise InvalidInput(f"{where}: the datatype is one of {', '.join(_KNOWN)}, got {shown(datatype)}")
    lengths = all(0 <= length < 2**31 for length in shape)
    if not lengths or not 1 <= len(shape) <= MAX_DIMS or not (all(shape) or few_rows(tuple(shape))):
        rule = f"a shape is a list of 1 to {MAX_DIMS} lengths, of which the first is the number of rows"
        raise InvalidInput(f"{where}: {rule}; got {shown(shape)}")


def from_json(data: list[Any], datatype: str, shape: Sequence[int], where: str) -> Array:
    """The tensor whose elements are `data`, nested as `shape` says or flat in row-major order."""
    if datatype in BINARY_ONLY:
        raise InvalidInput(f"{where}: JSON cannot carry {datatype}; send it as binary data")
    found, flat = flattened(data, len(shape) + 1, where)
    if found != (math.prod(shape),) and found != tuple(shape):
        raise InvalidInput(f"{where}: its shape is {list(shape)}, but its data is of shape {list(found)}")
    legal = {"BOOL": (bool,), BYTES: (str,)}.get(datatype, (int, float))
    if not {*map(type, flat)} <= {*legal}:
        wrong = next(item for item in flat if type(item) not in legal)
        raise InvalidInput(f"{where}: {described(wrong)} among its data is not of datatype {datatype}")
    if datatype == BYTES:
        return _objects([text.encode() for text in flat], shape)
    return exactly(flat, NUMERIC[datatype], where).reshape(shape)


def from_binary(data: memoryview, datatype: str, shape: Sequence[int], where: str) -> Array:
    """The tensor that these bytes are: little-endian, row-major; the array may be a view of them."""
    count = math.prod(shape)
    if datatype == BYTES:
        return _objects(_elements(data, count, where), shape)
    dtype = np.dtype("<u2") if datatype == BF16 else NUMERIC[datatype]
    if len(data) != count * dtype.itemsize:
        needed = count * dtype.itemsize
        raise InvalidInput(f"{where}: {datatype} of shape {list(shape)} has {needed} bytes, got {len(data)}")
    if datatype == "BOOL" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise InvalidInput(f"{where}: a byte of its data is not of datatype BOOL, which is 0 or 1")
    array = np.frombuffer(data, dtype).reshape(shape)
    return (array.astype("<u4") << 16).view("<f4") if datatype == BF16 else array


def datatype_of(array: Array) -> str:
    """What the protocol calls the array's dtype."""
    return BYTES if array.dtype == object else DATATYPES[array.dtype.name]


def to_json(array: Array, where: str) -> list[Any]:
    """The array's elements, flat in row-major order; InvalidInput for what JSON cannot carry exactly."""
    ask = "ask for it as binary data"
    if array.dtype == np.float16:
        raise InvalidInput(f"{where}: JSON cannot carry FP16; {ask}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInput(f"{where}: it holds NaN or infinity, which JSON cannot carry; {ask}")
    flat: list[Any] = array.reshape(-1).tolist()
    if array.dtype != object:
        return flat
    try:
        return [element.decode() for element in flat]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{where}: it holds bytes that are not UTF-8, which JSON cannot carry; {ask}") from error


def to_binary(array: Array) -> bytes:
    """The array as the protocol's bytes."""
    if array.dtype != object:
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return b"".join(piece for element in array.flat for piece in (_LENGTH.pack(len(element)), element))


def objects(elements: Sequence[bytes]) -> Array:
    """A tensor of BYTES with one dimension."""
    return _objects(elements, [len(elements)])


def _objects(elements: Sequence[bytes], shape: Sequence[int]) -> Array:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def _elements(data: memoryview, count: int, where: str) -> list[bytes]:
    """`count` elements, each its length and its bytes."""
    elements, at = [], 0
    for i in range(count):
        if len(data) - at < _LENGTH.size:
            raise InvalidInput(f"{where}: its {len(data)} bytes of data end before element {i} of {count}")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if length > len(data) - at:
            raise InvalidInput(f"{where}: element {i} says that it has {length} bytes, {len(data) - at} are left")
        elements.append(bytes(data[at : at + length]))
        at += length
    if at != len(data):
        raise InvalidInput(f"{where}: {len(data) - at} bytes of data are left after its {count} elements")
    return elements
