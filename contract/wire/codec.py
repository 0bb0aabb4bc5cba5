"""The payload codec: what a job carries, as bytes. MessagePack, with one extension for NumPy arrays; never pickle.

Knows nothing of models; signature.py says which values a model takes. Tensors are recognised by their methods, so that
torch is not imported here. Both directions treat what they are given as hostile and answer with InvalidInput.

An array travels as `u8 ndim, u8 length of dtype, dtype (ascii, little-endian), ndim × u64 shape, raw C-order bytes`.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown

Leaf: TypeAlias = Callable[[Any], Any]

MAX_DEPTH = 64  # lists and dicts within one another
MAX_DIMS = 32  # NumPy 1's own limit
MAX_EMPTY = 1 << 20  # rows an array without elements may claim: they cost nothing to send, and much to list

_ARRAY, _SCALAR = 1, 2  # MessagePack extension codes; a scalar is a 0-d array that comes back as a NumPy scalar
_CARRIED = frozenset(
    np.dtype(code).newbyteorder("<") for code in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
)
_DTYPE = re.compile(rb"\|b1|\|[iu]1|<[iu][248]|<f[248]|<U[1-9][0-9]{0,7}|\|S[1-9][0-9]{0,8}")
_PLAIN = frozenset({float, bool, type(None)})
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_TAKES = "send arrays, tensors, str, bytes, numbers, bools, None, or lists and dicts of those"


def encode(value: Any) -> bytes:
    """`value` as bytes; InvalidInput when it cannot be carried.

    Carried: None, bool, int (64 bit), float, str, bytes, NumPy scalars and arrays (bool, int8 to uint64, float16 to
    float64, fixed-width str and bytes), tensors and other array-likes, and lists, tuples and dicts (str keys) of those.
    """
    try:
        return _encoder.encode(_walk(value, _pack, 0))
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
        return _walk(_decoder.decode(data), _same, 0)
    except InvalidInput:
        raise
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise InvalidInput(f"the payload cannot be decoded: {shown(str(error))}") from error


def canonical(value: Any) -> Any:
    """`value` as `decode(encode(value))` gives it, but without copying arrays needlessly; InvalidInput likewise."""
    return _walk(value, _normal_leaf, 0)


def plain_json(value: Any) -> Any:
    """`value` as JSON data: NumPy scalars become Python's; arrays and bytes are InvalidInput. NaN and inf pass."""
    return _walk(value, _json_leaf, 0)


def jsonable(value: Any) -> Any:
    """A decoded value as JSON data for people: arrays as nested lists, bytes as {"base64": …}, NaN and inf as None."""
    if isinstance(value, (np.ndarray, np.generic)):
        return jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, list):
        return [jsonable(item) for item in value]
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    return value


def is_array(value: Any) -> bool:
    """Whether `value` is an array, a NumPy scalar, a tensor, or something else that NumPy can read as one."""
    return isinstance(value, (np.ndarray, np.generic)) or (
        not isinstance(value, type) and (hasattr(value, "__array__") or _is_tensor(value))
    )


def as_array(value: Any) -> NDArray[Any]:
    """An array-like or tensor (any device, with or without gradient) as a NumPy array, sharing memory where it can."""
    if isinstance(value, np.ma.MaskedArray):
        raise InvalidInput("a masked array cannot be carried; fill it first with .filled(value)")
    try:
        return np.asarray(value.detach().cpu().numpy() if _is_tensor(value) else value)
    except (TypeError, ValueError, RuntimeError) as error:  # bfloat16, sparse, ragged: the text says which
        kind = f"{type(value).__name__} of {getattr(value, 'dtype', 'unknown dtype')}"
        raise InvalidInput(f"a {kind} cannot become a NumPy array ({shown(str(error))}); convert it first") from error


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "cpu") and hasattr(value, "numpy")


def _walk(value: Any, leaf: Leaf, depth: int) -> Any:
    """`value` rebuilt from plain parts only, arrays, NumPy scalars and bytes having gone through `leaf`."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is np.ndarray or kind is bytes:
        return leaf(value)
    if kind is str:
        return _text(value)
    if kind is int:
        return _integer(value)
    if depth > MAX_DEPTH:
        raise InvalidInput(f"the value is nested more than {MAX_DEPTH} deep, or holds itself; flatten it")
    if isinstance(value, (list, tuple)):
        return _walk_list(value, leaf, depth + 1)
    if isinstance(value, dict):
        return {_key(key): _walk(item, leaf, depth + 1) for key, item in value.items()}
    return _walk_rare(value, leaf)


def _walk_list(value: list[Any] | tuple[Any, ...], leaf: Leaf, depth: int) -> list[Any]:
    kinds = set(map(type, value))
    if kinds <= _PLAIN:  # long lists of numbers are common, and this looks at them in C
        return list(value)
    if kinds == {int} and min(value) >= _INT_MIN and max(value) <= _INT_MAX:
        return list(value)
    return [_walk(item, leaf, depth) for item in value]


def _walk_rare(value: Any, leaf: Leaf) -> Any:
    if isinstance(value, str):  # np.str_, StrEnum
        return _text(str.__str__(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return leaf(bytes(value))
    if isinstance(value, np.generic):
        return leaf(value)
    if isinstance(value, int):
        return _integer(int.__int__(value))
    if isinstance(value, float):
        return float.__float__(value)
    if is_array(value):
        return leaf(as_array(value))
    raise InvalidInput(f"a value of type {type(value).__name__!a} cannot be carried; {_TAKES}")


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"text {shown(value)} holds a lone surrogate; decode it properly first") from error
    return value


def _integer(value: int) -> int:
    if not _INT_MIN <= value <= _INT_MAX:
        raise InvalidInput(f"the integer {shown(value)} does not fit 64 bits; send it as a str")
    return value


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise InvalidInput(f"a dict's keys must be str, got {shown(key)}; use str(key)")
    return _text(key if type(key) is str else str.__str__(key))


def _same(value: Any) -> Any:
    return value


def _normal_leaf(value: Any) -> Any:
    if isinstance(value, bytes):
        return value
    return _normal(value) if isinstance(value, np.ndarray) else _normal(np.asarray(value))[()]


def _json_leaf(value: Any) -> Any:
    if isinstance(value, np.generic):
        return _normal(np.asarray(value)).item()
    hint = "use .tolist()" if isinstance(value, np.ndarray) else "use str or base64"
    raise InvalidInput(f"{type(value).__name__} is no JSON data; {hint}")


def _pack(value: Any) -> Any:
    if isinstance(value, bytes):
        return value
    array = _normal(np.asarray(value))
    code = _ARRAY if isinstance(value, np.ndarray) else _SCALAR
    return msgspec.msgpack.Ext(code, _header(array.dtype, array.shape) + array.tobytes())


def _normal(array: NDArray[Any]) -> NDArray[Any]:
    """`array` in C order and little-endian, itself where it is so already; InvalidInput for what cannot be carried."""
    dtype = array.dtype if array.dtype in _CARRIED else _carried(array.dtype)
    if array.ndim > MAX_DIMS or not (array.size or _few_rows(array.shape)):
        raise InvalidInput(f"an array of shape {list(array.shape)} cannot be carried")
    normal = array.astype(dtype, order="C", copy=False)
    if dtype.kind == "U" and not _is_unicode(normal):
        raise InvalidInput("an array of str holds a lone surrogate; decode it properly first")
    return normal


def _carried(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind in "US" and dtype.names is None:
        return dtype.newbyteorder("<") if dtype.itemsize else np.dtype(f"<{dtype.kind}1")
    if dtype.newbyteorder("<") in _CARRIED:
        return dtype.newbyteorder("<")
    raise InvalidInput(
        f"an array of dtype {shown(str(dtype))} cannot be carried; "
        "convert it with .astype() to bool, an integer, a float of at most 64 bits, or fixed-width str or bytes"
    )


def _few_rows(shape: tuple[int, ...]) -> bool:
    return math.prod(length for length in shape if length) <= MAX_EMPTY


def _is_unicode(array: NDArray[Any]) -> bool:
    points = array.reshape(-1).view("<u4")
    return not bool(((points > 0x10FFFF) | ((points >= 0xD800) & (points <= 0xDFFF))).any())


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
    if not (all(shape) or _few_rows(tuple(shape))):
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
    if (dtype.kind == "U" and not _is_unicode(array)) or (dtype.kind == "b" and array.view("u1").max(initial=0) > 1):
        raise InvalidInput(f"the payload holds bytes that are no {dtype}")
    return array if code == _ARRAY else array[()]


# Both keep no state between calls, so every thread may use them.
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ext_hook=_unpack)
