"""Tensors of the Open Inference Protocol: back and forth unchanged, and refused by name when they are not what they say."""

import math
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from forebay.api.inference.tensors import (
    BYTES,
    NUMERIC,
    check_kind,
    datatype_of,
    from_binary,
    from_json,
    objects,
    to_binary,
    to_json,
)
from forebay.contract.errors import InvalidInput

NUMBERS = st.sampled_from([*NUMERIC.values()]).flatmap(lambda dtype: nps.arrays(dtype, nps.array_shapes(max_side=4)))
FINITE = NUMBERS.filter(lambda array: array.dtype != np.float16 and bool(np.isfinite(array).all()))
ELEMENTS = st.lists(st.binary(max_size=9), max_size=9)


def binary(data: bytes, datatype: str, *shape: int) -> np.ndarray:
    return from_binary(memoryview(data), datatype, shape, "input 'x'")


def as_json(data: list[Any], datatype: str, *shape: int) -> np.ndarray:
    return from_json(data, datatype, shape, "input 'x'")


@given(NUMBERS)
def test_numbers_come_back_from_binary_data_bit_by_bit(array: np.ndarray) -> None:
    back = binary(to_binary(array), datatype_of(array), *array.shape)
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(FINITE, st.booleans())
def test_numbers_come_back_from_json_flat_or_nested(array: np.ndarray, nested: bool) -> None:
    data = array.tolist() if nested else to_json(array, "output 'x'")
    back = as_json(msgspec.json.decode(msgspec.json.encode(data)), datatype_of(array), *array.shape)
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(ELEMENTS)
def test_bytes_come_back_from_binary_data(elements: list[bytes]) -> None:
    assert binary(to_binary(objects(elements)), BYTES, len(elements)).tolist() == elements


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=9)))
def test_text_comes_back_from_json(texts: list[str]) -> None:
    array = as_json(texts, BYTES, len(texts))
    assert array.tolist() == [text.encode() for text in texts]
    assert to_json(array, "output 'x'") == texts


@given(NUMBERS, st.integers(-20, 20).filter(bool))
def test_binary_data_of_another_length_than_its_shape_is_refused(array: np.ndarray, by: int) -> None:
    data = to_binary(array)
    wrong = data[:by] if by < 0 else data + bytes(by)
    with pytest.raises(InvalidInput, match=r"input 'x': \w+ of shape .* has \d+ bytes, got \d+"):
        binary(wrong, datatype_of(array), *array.shape)


@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_are_exactly_a_tensor_of_bytes_or_refused(data: bytes, count: int) -> None:
    try:
        array = binary(data, BYTES, count)
    except InvalidInput:
        return
    assert to_binary(array) == data


def test_a_lying_length_of_an_element_takes_no_memory() -> None:
    with pytest.raises(InvalidInput, match="element 1 says that it has 4294967295 bytes, 2 are left"):
        binary(struct.pack("<I1sI2s", 1, b"a", 2**32 - 1, b"bc"), BYTES, 2)
    with pytest.raises(InvalidInput, match="its 4 bytes of data end before element 1 of 2147483647"):
        binary(struct.pack("<I", 0), BYTES, 2**31 - 1)


def test_a_bfloat16_is_the_same_number_as_a_float32() -> None:
    numbers = [0.0, -1.5, 3.140625, math.inf, -(2.0**100)]
    data = (np.array(numbers, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    back = binary(data, "BF16", 5)
    assert (back.dtype.name, back.tolist()) == ("float32", numbers)


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "reason"),
    [
        ([1, 2, 3], "INT64", (2,), r"its shape is \[2\], but its data is of shape \[3\]"),
        ([[1, 2], [3, 4]], "INT64", (4, 1), r"its shape is \[4, 1\], but its data is of shape \[2, 2\]"),
        ([[1, 2], [3]], "INT64", (2, 2), "ragged"),
        ([[1, 2], 3], "INT64", (2, 2), "ragged"),
        ([[[1]]], "INT64", (1,), r"is of shape \[1, 1\]"),
        ([128], "INT8", (1,), "128 does not fit int8"),
        ([-1], "UINT8", (1,), "-1 does not fit uint8"),
        ([2**64], "UINT64", (1,), "does not fit uint64"),
        ([0.5], "INT32", (1,), "0.5 does not fit int32"),
        ([3.5e38], "FP32", (1,), "does not fit float32"),
        ([10**400], "FP64", (1,), "does not fit float64"),
        ([True], "INT8", (1,), "bool True among its data is not of datatype INT8"),
        ([1], "BOOL", (1,), "int 1 among its data is not of datatype BOOL"),
        ([None], "FP32", (1,), "None among its data is not of datatype FP32"),
        (["1"], "FP32", (1,), "str '1' among its data is not of datatype FP32"),
        ([1], BYTES, (1,), "int 1 among its data is not of datatype BYTES"),
        ([1.0], "FP16", (1,), "JSON cannot carry FP16"),
        ([1.0], "BF16", (1,), "JSON cannot carry BF16"),
    ],
)
def test_json_that_is_not_what_it_says_is_refused_by_name(
    data: list[Any], datatype: str, shape: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(InvalidInput, match=rf"^input 'x': .*{reason}"):
        as_json(data, datatype, *shape)


@pytest.mark.parametrize("shape", [[], [-1], [2**31], [1] * 33, [2**30, 0]])
def test_a_shape_that_no_tensor_has_is_refused(shape: list[int]) -> None:
    with pytest.raises(
        InvalidInput,
        match="input 'x': a shape is a list of 1 to 32 lengths, of which the first is the number of rows; got",
    ):
        check_kind("FP32", shape, "input 'x'")


def test_a_datatype_that_is_not_the_protocols_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"the datatype is one of BOOL, INT8, .*, BYTES, got 'float32'"):
        check_kind("float32", [1], "input 'x'")


def test_a_byte_that_is_neither_true_nor_false_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not of datatype BOOL"):
        binary(b"\0\1\2", "BOOL", 3)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([1.0, math.nan], np.float32), "NaN"),
        (np.array([-math.inf]), "infinity"),
        (np.zeros(1, np.float16), "FP16"),
        (objects([b"\xff"]), "not UTF-8"),
    ],
)
def test_what_json_cannot_carry_is_not_written_as_something_else(array: np.ndarray, reason: str) -> None:
    with pytest.raises(InvalidInput, match=rf"output 'y': .*{reason}.*binary"):
        to_json(array, "output 'y'")
