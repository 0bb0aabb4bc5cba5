"""The payload codec: what a job carries, as bytes. MessagePack, with one extension for NumPy arrays; never pickle.

An array travels as `u8 ndim, u8 length of dtype, dtype (ascii, little-endian), ndim × u64 shape, raw C-order bytes`. What is
decoded is treated as hostile and answered with InvalidInput.
"""

from __future__ import annotations

import math
import re
import struct
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.values import MAX_DIMS, few_rows, is_unicode, normal_array, walk

_ARRAY, _SCALAR = 1, 2  # MessagePack extension codes; a scalar is a 0-d array that comes back as a NumPy scalar
_DTYPE = re.compile(rb"\|b1|\|[iu]1|<[iu][248]|<f[248]|<U[1-9][0-9]{0,7}|\|S[1-9][0-9]{0,8}")


def encode(value: Any) -> bytes:
    """`value` as bytes; InvalidInput when it cannot be carried.

    Carried: None, bool, int (64 bit), float, str, bytes, NumPy scalars and arrays (bool, int8 to uint64, float16 to
    float64, fixed-width str and bytes), tensors and other array-likes, and lists, tuples and dicts (str keys) of those.
    """
    try:
        return _encoder.encode(walk(value, _pack))
    except InvalidInput:
        raise
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"the value cannot be encoded: {shown(str(error))}") from error


def decode(data: bytes | bytearray | memoryview) -> Any:
    """What `encode` was given; InvalidInput when `data` is not the codec's.

    Arrays come back little-endian, in C order, and are the caller's own: writeable, aligned, no view of `data`.
    NumPy scalars come back as such (np.str_ and np.bytes_ as str and bytes), tensors as arrays, tuples as lists.
    """
    try:
        return walk(_decoder.decode(data), lambda leaf: leaf)
    except InvalidInput:
        raise
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise InvalidInput(f"the payload cannot be decoded: {shown(str(error))}") from error


def _pack(value: Any) -> Any:
    if isinstance(value, bytes):
        return value
    array = normal_array(np.asarray(value))
    code = _ARRAY if isinstance(value, np.ndarray) else _SCALAR
    return msgspec.msgpack.Ext(code, _header(array.dtype, array.shape) + array.tobytes())


@lru_cache(maxsize=1024)
def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    name = dtype.str.encode("ascii")
    return struct.pack(f"<BB{len(name)}s{len(shape)}Q", len(shape), len(name), name, *shape)


@lru_cache(maxsize=1024)
def _parse_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """dtype, shape and size in bytes of the array that `header` announces."""
    ndim, length = header[0], header[1]
    name, *shape = struct.unpack_from(f"<{length}s{ndim}Q", header, 2)
    # np.dtype reads a small language, with Python's own parser behind it: nothing unknown may reach it.
    if ndim > MAX_DIMS or not _DTYPE.fullmatch(name):
        raise InvalidInput(f"the payload holds an array of a form that is never sent: {shown(name)}")
    dtype = np.dtype(name.decode("ascii"))
    if not (all(shape) or few_rows(tuple(shape))):
        raise InvalidInput(f"the payload holds an array of shape {shown(shape)}")
    return dtype, tuple(shape), math.prod(shape) * dtype.itemsize


def _unpack(code: int, data: memoryview) -> Any:
    start = 2 + data[1] + 8 * data[0] if len(data) > 2 else 2
    if code not in (_ARRAY, _SCALAR) or not 2 < start <= len(data):
        raise InvalidInput(f"the payload holds an unknown extension {code} of {len(data)} bytes")
    dtype, shape, size = _parse_header(bytes(data[:start]))
    if len(data) - start != size or (code == _SCALAR and shape):
        raise InvalidInput(f"the payload holds {len(data) - start} bytes for {dtype} of shape {list(shape)}")
    # A copy: arrays that are read-only or lie at odd addresses surprise users, torch and in-place arithmetic.
    array: NDArray[Any] = np.ndarray(shape, dtype, data, start).copy()
    if (dtype.kind == "U" and not is_unicode(array)) or (dtype.kind == "b" and array.view("u1").max(initial=0) > 1):
        raise InvalidInput(f"the payload holds bytes that are not {dtype}")
    return array if code == _ARRAY else array[()]


# Both keep no state between calls, so every thread may use them.
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ext_hook=_unpack)
