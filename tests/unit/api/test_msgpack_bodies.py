"""MessagePack bodies: a map that has a key twice is refused, however its keys and values are written."""

import struct
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.api.context import decode_msgpack
from forebay.contract.errors import InvalidInput
from forebay.contract.wire import codec


class Written(NamedTuple):
    """MessagePack, and whether a map within it has a key twice."""

    data: bytes
    twice: bool = False


def text(value: str, form: int) -> bytes:
    raw = value.encode()
    lengths = [
        b"\xd9" + bytes([len(raw)]),
        b"\xda" + struct.pack(">H", len(raw)),
        b"\xdb" + struct.pack(">I", len(raw)),
    ]
    return [bytes([0xA0 | len(raw)]), *lengths][form] + raw


def head(count: int, form: int, small: int, large: int) -> bytes:
    """Of a map or an array, in its shortest form or a longer one."""
    return [
        bytes([small | count]),
        bytes([large]) + struct.pack(">H", count),
        bytes([large + 1]) + struct.pack(">I", count),
    ][form]


FORMS = st.integers(0, 2)
TEXTS = st.builds(text, st.sampled_from(["", "a", "b", "é", "x" * 20]), st.integers(0, 3))
LEAVES = st.sampled_from(
    [
        b"\xc0", b"\xc2", b"\xc3", b"\x05", b"\xff", b"\xcc\x05", b"\xcd\x00\x05", b"\xce\x00\x00\x00\x05", b"\xcf" + bytes(8),
        b"\xd0\x81", b"\xd1\x81\x81", b"\xd2" + bytes(4), b"\xd3" + bytes(8), b"\xca" + bytes(4), b"\xcb" + bytes(8),
        b"\xc4\x02\x81\xa1", b"\xc5\x00\x01\x81", b"\xc6\x00\x00\x00\x01\x81", codec.encode(np.arange(3)),
        codec.encode(np.float32(2)),
    ]
)  # fmt: skip


def array(items: list[Written], form: int) -> Written:
    return Written(head(len(items), form, 0x90, 0xDC) + b"".join(i.data for i in items), any(i.twice for i in items))


def mapping(items: list[tuple[bytes, Written]], form: int) -> Written:
    keys = [msgspec.msgpack.decode(key) for key, _ in items]
    data = head(len(items), form, 0x80, 0xDE) + b"".join(key + value.data for key, value in items)
    return Written(data, len(set(keys)) < len(keys) or any(value.twice for _, value in items))


VALUES = st.recursive(
    (LEAVES | TEXTS).map(Written),
    lambda inner: (
        st.builds(array, st.lists(inner, max_size=4), FORMS)
        | st.builds(mapping, st.lists(st.tuples(TEXTS, inner), max_size=4), FORMS)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_a_key_that_comes_twice_is_found_wherever_it_is(value: Written) -> None:
    if value.twice:
        with pytest.raises(InvalidInput, match=r"has the key .* twice"):
            decode_msgpack(value.data)
    else:
        np.testing.assert_equal(decode_msgpack(value.data), codec.decode(value.data))
