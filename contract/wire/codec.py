"""The payload codec: what a job carries, as bytes. MessagePack, with one extension for NumPy arrays; never pickle.

An array travels as `u8 ndim, u8 length of dtype, dtype (ascii, little-endian), ndim × u64 shape, raw C-order bytes`. What is
decoded is treated as hostile and answered with InvalidInput.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.values import MAX_DIMS, few_rows, is_unicode, normal_array, walk

Part: TypeAlias = bytes | bytearray | memoryview
Parts: TypeAlias = Sequence[Part]  # of a payload, in order

LARGE = 2**16  # bytes from which an array is a part of its own: it is handed on as it lies in memory
_ARRAY, _SCALAR = 1, 2  # MessagePack extension codes; a scalar is a 0-d array that comes back as a NumPy scalar
_DTYPE = re.compile(rb"\|b1|\|[iu]1|<[iu][248]|<f[248]|<U[1-9][0-9]{0,7}|\|S[1-9][0-9]{0,8}")


def encode(value: Any) -> bytes:
    """`value` as bytes; InvalidInput when it cannot be carried. See `encode_parts`."""
    return b"".join(encode_parts(value))


def encode_parts(value: Any) -> Parts:
    """The same in parts. Large arrays and bytes are not copied: a part may be a view of the caller's own memory.

    Carried: None, bool, int (64 bit), float, str, bytes, NumPy scalars and arrays (bool, int8 to uint64, float16 to
    float64, fixed-width str and bytes), tensors and other array-likes, and lists, tuples and dicts (str keys) of those.
    """
    try:
        packed = walk(value, _pack)
        try:
            return [_encoder.encode(packed)]
        except _FoundLarge:
            return _Spliced(packed).parts
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


class _Large:
    """What is not copied, and what MessagePack has before it. A class that the encoder does not know, so that it stops there."""

    def __init__(self, head: bytes, data: bytes | memoryview) -> None:
        self.head, self.data = head, data


class _FoundLarge(Exception):
    pass


def _pack(value: Any) -> Any:
    if isinstance(value, bytes):
        return value if not LARGE <= len(value) < 2**32 else _Large(struct.pack(">BI", 0xC6, len(value)), value)
    array = normal_array(np.asarray(value))
    code = _ARRAY if isinstance(value, np.ndarray) else _SCALAR
    header = _header(array.dtype, array.shape)
    if not LARGE <= array.nbytes < 2**32 - len(header):
        return msgspec.msgpack.Ext(code, header + array.tobytes())
    head = struct.pack(">BIB", 0xC9, len(header) + array.nbytes, code)
    return _Large(head + header, array.reshape(-1).view("u1").data)


class _Spliced:
    """The encoding of a packed value, byte by byte what the encoder gives, with large arrays and bytes as parts of their own."""

    def __init__(self, packed: Any) -> None:
        self.parts: list[Part] = []
        self._tail = bytearray()
        self._add(packed)
        self.parts.append(self._tail)

    def _add(self, packed: Any) -> None:
        try:
            self._tail += _encoder.encode(packed)
        except _FoundLarge:
            if isinstance(packed, _Large):
                self.parts += [self._tail + packed.head, packed.data]
                self._tail = bytearray()
                return
            mapped = isinstance(packed, dict)
            self._tail += _head(len(packed), *((0x80, 0xDE) if mapped else (0x90, 0xDC)))
            for item in packed:
                if mapped:
                    self._tail += _encoder.encode(item)
                self._add(packed[item] if mapped else item)


def _stop_at_large(_: object) -> None:
    raise _FoundLarge


def _head(length: int, short: int, code: int) -> bytes:
    """How MessagePack begins a list or map of so many."""
    if length < 16:
        return bytes([short | length])
    return struct.pack(">BH", code, length) if length < LARGE else struct.pack(">BI", code + 1, length)


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
_encoder = msgspec.msgpack.Encoder(enc_hook=_stop_at_large)
_decoder = msgspec.msgpack.Decoder(ext_hook=_unpack)
