"""The layout of a job's input and of a batched result."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from forebay.contract.errors import InvalidInput
from forebay.contract.wire import codec
from forebay.contract.wire.payload import (
    InputReader,
    PackedRows,
    join_rows,
    pack_input,
    pack_inputs,
    pack_parts,
    unpack_input,
)

ROWS = st.lists(
    st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8"), max_size=5) | st.binary(max_size=5),
    min_size=1,
    max_size=9,
)


@given(ROWS, st.booleans())
def test_an_input_comes_back_as_it_was_packed(rows: list[Any], batched: bool) -> None:
    assert unpack_input(pack_input(rows, batched)) == PackedRows(batched, rows)
    asked = {"method": "saliency"}
    explained = b"".join(pack_parts(rows, batched, explain=asked))
    assert unpack_input(explained) == PackedRows(batched, rows, explain=asked)
    assert unpack_input(pack_input(rows, batched, usage=True)) == PackedRows(batched, rows, True)
    assert unpack_input(pack_input(rows, batched, stream=True)) == PackedRows(batched, rows, False, True)


def test_rows_of_arrays_come_back_with_dtype_and_shape() -> None:
    rows = [{"x": np.full((2, 3), i, np.float32)} for i in range(4)]
    batched, back, *_ = unpack_input(pack_input(rows, True))
    assert batched is True
    assert [row["x"].dtype.name for row in back] == ["float32"] * 4
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(rows, back, strict=True))


COLUMNS = nps.arrays(
    st.sampled_from([np.float32, np.int64, np.uint8, np.bool_, ">i2", "<U3"]), nps.array_shapes(max_dims=3, max_side=4)
)


@given(COLUMNS, st.booleans())
def test_the_rows_of_a_column_are_packed_as_each_would_be_alone_and_read_the_same(column: Any, usage: bool) -> None:
    alone = [pack_input([{"x": column[i, ...]}], False, usage) for i in range(len(column))]
    assert pack_inputs("x", column, usage) == alone
    reader = InputReader()
    for data, row in zip(alone, column, strict=True):
        batched, [back], told, *_ = reader.read(data)
        assert (batched, told, [*back]) == (False, usage, ["x"])
        assert back["x"].dtype == column.dtype.newbyteorder("<")
        np.testing.assert_array_equal(back["x"], row)  # NaN as NaN
        assert back["x"].flags.owndata
        assert back["x"].flags.writeable


@pytest.mark.parametrize("marks", [[], [False], [True], [True, False], [False, True], [True, True]])
def test_a_reader_keeps_what_stands_behind_an_array_from_its_numbers(marks: list[bool]) -> None:
    reader = InputReader()
    for filled in (0xC3, 0xC3, 0x01):  # the first as MessagePack writes True
        data = codec.encode([False, [{"x": np.full(4, filled, np.uint8)}], *marks])
        assert codec.encode(list(reader.read(data))) == codec.encode(list(unpack_input(data)))


@given(st.integers(0, 200), st.binary(min_size=1, max_size=3), st.booleans())
def test_a_reader_takes_and_refuses_what_is_taken_and_refused_without_it(at: int, other: bytes, usage: bool) -> None:
    data = pack_inputs("x", np.arange(6, dtype=np.float32).reshape(2, 3), usage)
    reader = InputReader()
    reader.read(data[0])
    at %= len(data[1])
    damaged = data[1][:at] + other + data[1][at + len(other) :]

    def outcome(read: Any) -> Any:
        try:
            return codec.encode(list(read(damaged)))
        except InvalidInput as error:
            return str(error)

    assert outcome(reader.read) == outcome(unpack_input)


@pytest.mark.parametrize(
    "value",
    [None, 7, "x", {}, [], [True], [True, [1], 2], [True, [1], True, 2], [True, [1], *[True] * 3], [1, [1]], [[1], True],
     [True, {"a": 1}]],
)  # fmt: skip
def test_bytes_that_are_no_input_are_refused(value: Any) -> None:
    with pytest.raises(InvalidInput, match="not a job's input"):
        unpack_input(codec.encode(value))


@given(st.binary(max_size=40))
def test_any_bytes_are_an_input_or_refused(data: bytes) -> None:
    try:
        batched, rows, *_ = unpack_input(data)
    except InvalidInput:
        return
    assert isinstance(rows, list)
    assert isinstance(batched, bool)


def test_arrays_of_equal_shape_and_dtype_gain_a_leading_dimension() -> None:
    joined = join_rows([np.arange(3, dtype=np.int16) + i for i in range(2)])
    assert joined.dtype == np.int16
    assert joined.tolist() == [[0, 1, 2], [1, 2, 3]]


def test_numpy_scalars_become_one_array() -> None:
    joined = join_rows([np.float32(1), np.float32(2)])
    assert (joined.dtype, joined.tolist()) == (np.float32, [1.0, 2.0])


@pytest.mark.parametrize(
    "rows",
    [
        [np.zeros(2), np.zeros(3)],
        [np.zeros(2, np.float32), np.zeros(2, np.float64)],
        ["a", "b"],
        [1, 2],
        [None, np.zeros(2)],
        [np.zeros(2), None],
        [{"a": 1}, {"a": 1, "b": 2}],
        [{"a": 1, "b": 2}, {"a": 1}],
        [{"a": 1}, "b"],
    ],
)
def test_what_does_not_stack_is_listed(rows: list[Any]) -> None:
    joined = join_rows(rows)
    assert isinstance(joined, list)
    assert all(a is b for a, b in zip(joined, rows, strict=True))


def test_several_outputs_are_joined_by_name() -> None:
    joined = join_rows([{"p": np.zeros(2), "label": "cat"}, {"p": np.ones(2), "label": "dog"}])
    assert joined["p"].shape == (2, 2)
    assert joined["label"] == ["cat", "dog"]


def test_a_batch_of_one_keeps_its_leading_dimension() -> None:
    assert join_rows([np.zeros((4, 5))]).shape == (1, 4, 5)
