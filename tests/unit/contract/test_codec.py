"""The payload codec: what goes in comes out, and nothing that comes from outside breaks it."""

import json
import math
import struct
import threading
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from forebay.contract.errors import InvalidInput
from forebay.contract.values import MAX_DEPTH, canonical, jsonable, plain_json
from forebay.contract.wire import codec
from forebay.contract.wire.codec import LARGE, decode, encode, encode_parts

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMERIC = st.one_of(
    nps.boolean_dtypes(),
    nps.integer_dtypes(endianness="?"),
    nps.unsigned_integer_dtypes(endianness="?"),
    nps.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
)
SHAPES = nps.array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=5)
ARRAYS = st.one_of(
    nps.arrays(NUMERIC, SHAPES),
    nps.arrays(
        "<U4", SHAPES, elements=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
    ),
    nps.arrays(nps.byte_string_dtypes(), SHAPES),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), TEXT, st.binary())
VALUES = st.recursive(
    st.one_of(SCALARS, ARRAYS), lambda inner: st.one_of(st.lists(inner), st.dictionaries(TEXT, inner)), max_leaves=8
)
SAMPLE = {
    "x": np.arange(6, dtype="f4").reshape(2, 3),
    "t": ["a", b"b", None, 1, 2.5],
    "s": np.float32(1),
    "u": np.array("é"),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        equal_nan = a.dtype.kind == "f"
        return isinstance(b, np.ndarray) and a.shape == b.shape and np.array_equal(a, b, equal_nan=equal_nan)
    if isinstance(a, (list, tuple)):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and [*a] == [*b] and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and (a == b or (a != a and b != b))


@given(VALUES)
def test_every_carried_value_survives(value: Any) -> None:
    assert same(value, decode(encode(value)))


@given(VALUES)
def test_canonical_is_what_decoding_gives(value: Any) -> None:
    assert same(canonical(value), decode(encode(value)))
    assert encode(canonical(value)) == encode(value)


@given(ARRAYS)
def test_arrays_come_back_little_endian_contiguous_aligned_and_writeable(array: np.ndarray[Any, Any]) -> None:
    back = decode(encode(["pad", array]))[1]
    assert back.dtype == array.dtype.newbyteorder("<")
    assert back.flags.c_contiguous
    assert back.flags.aligned
    assert back.flags.writeable


@pytest.mark.parametrize(
    "array",
    [
        np.array(3.5),
        np.empty((0,)),
        np.empty((2, 0, 3), "f2"),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(20)[::-3],
        np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)[:, :, 1],
        np.broadcast_to(np.float32(2), (3, 3)),
        np.arange(4, dtype=">i4"),
        np.array([0, 2**64 - 1], "u8"),
        np.array([[True, False]]),
        np.array([["", "日本"], ["é", "x" * 50]]),
        np.array(["ab"], dtype=">U2"),
        np.array([b"ab", b""]),
        np.zeros((1,) * 32),
        np.zeros(3, "U0"),
    ],
)
def test_arrays_of_every_layout_survive(array: np.ndarray[Any, Any]) -> None:
    assert same(array, decode(encode(array)))


@pytest.mark.parametrize(
    "scalar", [np.float16(1.5), np.float64("inf"), np.int8(-1), np.uint64(2**64 - 1), np.bool_(True)]
)
def test_numpy_scalars_come_back_as_numpy_scalars(scalar: np.generic) -> None:
    back = decode(encode([scalar]))[0]
    assert type(back) is type(scalar)
    assert back == scalar


def test_relatives_of_plain_types_come_back_plain() -> None:
    class Color(StrEnum):
        RED = "red"

    class Size(IntEnum):
        BIG = 7

    given_ = [Color.RED, Size.BIG, np.str_("é"), np.bytes_(b"x"), bytearray(b"y"), memoryview(b"abcd")[::2], (1, 2)]
    back = decode(encode({Color.RED: given_}))
    assert back == {"red": ["red", 7, "é", b"x", b"y", b"ac", [1, 2]]}
    assert [type(item) for item in back["red"]] == [str, int, str, bytes, bytes, bytes, list]


def test_tensors_come_back_as_arrays() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6.0, requires_grad=True).reshape(2, 3).T
    assert same(tensor.detach().numpy(), decode(encode(tensor)))
    for refused in (torch.ones(2, dtype=torch.bfloat16), torch.ones(2).to_sparse(), torch.ones(2, device="meta")):
        with pytest.raises(InvalidInput, match="cannot become a NumPy array"):
            encode(refused)


@pytest.mark.parametrize(
    "value",
    [
        2**64,
        -(2**63) - 1,
        10**5000,
        [1, 2**64],
        {1: 2},
        {"a": {None: 1}},
        "\ud800",
        ["\udfff"],
        {"\ud800": 1},
        np.array(["\ud800"]),
        np.str_("\ud800"),
        np.array([None]),
        np.array([{}], dtype=object),
        np.zeros(2, "M8[s]"),
        np.zeros(2, "m8"),
        np.zeros(2, [("a", "i4")]),
        np.zeros(2, "V8"),
        np.zeros(2, "c8"),
        np.longdouble(1),
        np.datetime64("2020"),
        np.complex64(1),
        np.ma.masked_array([1], [True]),
        np.zeros((2**40, 0)),
        {1, 2},
        1j,
        object(),
        np.ndarray,
        datetime(2020, 1, 1, tzinfo=UTC),
        (item for item in ()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_carried_is_refused_in_printable_words(value: Any) -> None:
    for attempt in (encode, canonical):
        with pytest.raises(InvalidInput) as caught:
            attempt(value)
        assert str(caught.value).isascii()
        assert str(caught.value).isprintable()


def test_a_value_that_holds_itself_or_is_nested_too_deep_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    knot: dict[str, Any] = {}
    knot["again"] = [knot]
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    for value in (loop, knot, deep):
        with pytest.raises(InvalidInput, match="nested"):
            encode(value)
    while isinstance(deep, list):  # take it apart by hand: Python's own destructor recurses
        deep = deep[0]


def test_the_deepest_value_that_can_be_sent_can_be_read() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert decode(encode(value)) == value
    assert jsonable(decode(encode(value))) == value


@given(st.binary(max_size=200))
def test_random_bytes_are_a_value_or_invalid_input(data: bytes) -> None:
    try:
        value = decode(data)
    except InvalidInput:
        return
    json.dumps(jsonable(value), allow_nan=False).encode()


@given(VALUES, st.data())
def test_damaged_payloads_are_a_value_or_invalid_input(value: Any, data: st.DataObject) -> None:
    payload = bytearray(encode([SAMPLE, value]))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        back = decode(bytes(payload))
    except InvalidInput:
        return
    json.dumps(jsonable(back), allow_nan=False).encode()
    assert same(back, decode(encode(back)))


@given(st.integers(0, 200))
def test_a_cut_payload_is_refused(cut: int) -> None:
    payload = encode(SAMPLE)
    with pytest.raises(InvalidInput):
        decode(payload[: min(cut, len(payload) - 1)])
    with pytest.raises(InvalidInput):
        decode(payload + b"\x00")


def forged(dtype: bytes, shape: tuple[int, ...], raw: bytes, code: int = 1, ndim: int | None = None) -> bytes:
    head = struct.pack(
        f"<BB{len(dtype)}s{len(shape)}q", len(shape) if ndim is None else ndim, len(dtype), dtype, *shape
    )
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(code, head + raw))


def test_the_forger_of_these_tests_can_make_a_true_array() -> None:
    assert same(np.array([1, 2], "<u2"), decode(forged(b"<u2", (2,), b"\x01\x00\x02\x00")))


@pytest.mark.parametrize(
    "data",
    [
        forged(b"<f4", (3,), b"\x00" * 8),
        forged(b"<f4", (1,), b"\x00" * 8),
        forged(b"<f4", (-1,), b"\x00" * 4),
        forged(b"<f4", (2**62, 2**62), b""),
        forged(b"<f4", (2**40, 0), b""),
        forged(b"<f4", (0, 2**62, 2**62), b""),
        forged(b"<f4", (1,) * 33, b"\x00" * 4),
        forged(b"<f4", (1,), b"\x00" * 4, ndim=200),
        forged(b"<f4", (2,), b"\x00" * 8, code=2),
        forged(b"<f4", (1,), b"\x00" * 4, code=3),
        forged(b"<f4", (1,), b"\x00" * 4, code=-1),
        forged(b"|O", (1,), b"\x00" * 8),
        forged(b"|V8", (1,), b"\x00" * 8),
        forged(b"<M8[s]", (1,), b"\x00" * 8),
        forged(b"<c8", (1,), b"\x00" * 8),
        forged(b">f4", (1,), b"\x00" * 4),
        forged(b"i4,O", (1,), b"\x00" * 12),
        forged(b"float32", (1,), b"\x00" * 4),
        forged(b"02f", (1,), b"\x00" * 4),  # np.dtype itself answers this one with SyntaxError
        forged(b"(9,9)f4", (1,), b"\x00" * 324),
        forged(b"<U999999999999", (0,), b""),
        forged(b"<U0", (2**40,), b""),
        forged(b"\xff", (1,), b"\x00"),
        forged(b"", (1,), b"\x00"),
        forged(b"<U1", (1,), b"\xff\xff\xff\xff"),
        forged(b"<U1", (), b"\x00\xd8\x00\x00"),
        forged(b"|b1", (2,), b"\x01\x02"),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(1, b"")),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(1, b"\xff\xff")),
        msgspec.msgpack.encode({1: 2}),
        msgspec.msgpack.encode(datetime(2020, 1, 1, tzinfo=UTC)),
        b"",
        b"\xc1",
        b"\x91" * 1_000_000,
        b"\x91" * (MAX_DEPTH + 5) + b"\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xa1\xff",
        b"\x81\x90\x01",
    ],
)
def test_forged_payloads_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(data)
    assert str(caught.value).isascii()


@pytest.mark.parametrize("data", [None, "text", 3, [b"x"]])
def test_what_is_no_payload_at_all_is_refused(data: Any) -> None:
    with pytest.raises(InvalidInput):
        decode(data)


def test_payloads_are_read_from_any_buffer_and_leave_it_alone() -> None:
    payload = bytearray(encode(np.zeros(4)))
    back = decode(memoryview(payload))
    back[:] = 1
    assert payload == encode(np.zeros(4))


def test_threads_share_the_codec() -> None:
    failures: list[int] = []

    def work(seed: int) -> None:
        value = {"x": np.full(50, seed), "deep": [[seed] * 20] * 20}
        failures.extend(seed for _ in range(200) if not same(value, decode(encode(value))))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_decoded_value_becomes_json_for_people() -> None:
    value = {"x": np.array([[1.5, math.nan]]), "n": np.int8(3), "b": b"\x00\xff", "f": math.inf, "t": [None, True, "é"]}
    data = jsonable(decode(encode(value)))
    assert data == {"x": [[1.5, None]], "n": 3, "b": {"base64": "AP8="}, "f": None, "t": [None, True, "é"]}
    assert jsonable(np.array([b"x"])) == [{"base64": "eA=="}]
    assert jsonable(np.array(2.0)) == 2.0


@given(VALUES)
def test_every_carried_value_becomes_strict_json(value: Any) -> None:
    json.dumps(jsonable(decode(encode(value))), allow_nan=False).encode()


def test_json_data_takes_numpy_scalars_but_no_arrays_or_bytes() -> None:
    back = plain_json({"a": (1, np.float32(0.5), np.int64(2), "x", None)})
    assert back == {"a": [1, 0.5, 2, "x", None]}
    assert type(back["a"][2]) is int
    for value, hint in [(np.zeros(2), "tolist"), (b"x", "base64"), ({1: 2}, "keys"), ({1}, "set")]:
        with pytest.raises(InvalidInput, match=hint):
            plain_json({"a": value})


LARGE_VALUES = [
    np.zeros(LARGE, np.uint8),
    [np.arange(LARGE, dtype=np.float32)] * 20,
    {"x": np.ones((3, LARGE)), "rest": [1, {"bytes": b"x" * LARGE, "more": [b"y" * (LARGE - 1)]}], "": None},
    {str(i): np.zeros(LARGE, bool) if i == 3 else i for i in range(70_000)},
    [*range(70_000), np.array("x" * LARGE), np.array(["é" * LARGE]), np.zeros((2, LARGE), ">f8").T],
]


@pytest.mark.parametrize("value", LARGE_VALUES, ids=range(len(LARGE_VALUES)))
def test_large_arrays_in_parts_are_the_same_bytes(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = encode_parts(value)
    assert len(parts) > 2
    monkeypatch.setattr(codec, "LARGE", 2**40)
    [whole] = encode_parts(value)
    assert b"".join(parts) == whole


def test_a_large_array_is_handed_on_as_it_lies_in_memory() -> None:
    array, text = np.random.default_rng(0).standard_normal((4, LARGE)), b"x" * LARGE
    parts = encode_parts({"rows": list(array), "text": text})
    views = [np.frombuffer(part, np.uint8) for part in parts if len(part) >= LARGE]
    assert [np.shares_memory(view, array) for view in views] == [True] * 4 + [False]
    assert any(part is text for part in parts)
