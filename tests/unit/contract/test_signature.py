"""Signatures: what a sample may be, what becomes of it, and what a user is told about the rest."""

import json
import math
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from forebay.contract.errors import InvalidInput
from forebay.contract.signature import ARRAY_DTYPES, Field, Signature
from forebay.contract.values import stack_key
from forebay.contract.wire.codec import decode, encode


def spec(dtype: str, *shape: int, **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), **more}


def one(dtype: str, *shape: int, **more: Any) -> Signature:
    return Signature.parse({"x": spec(dtype, *shape, **more)}, {"y": spec(dtype, *shape, **more)})


def value(dtype: str) -> Signature:
    return Signature.parse({"x": {"dtype": dtype}}, {"y": {"dtype": dtype}})


DIGITS = one("float32", 64)
PAIR = Signature.parse(
    {"ids": spec("int64", -1), "text": {"dtype": "str"}}, {"a": spec("float32"), "b": {"dtype": "str"}}
)
FREE = Signature()


# Declaring


FIELDS = st.builds(
    Field,
    name=st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=9),
    dtype=st.sampled_from([*ARRAY_DTYPES]),
    shape=st.lists(st.integers(1, 9) | st.just(-1), max_size=4).map(tuple),
    allow_nan=st.booleans(),
)


@given(st.lists(FIELDS, min_size=1, max_size=4, unique_by=lambda field: field.name))
def test_a_signature_survives_being_written_as_json_and_read(fields: list[Field]) -> None:
    signature = Signature(tuple(fields), None)
    written = json.loads(json.dumps(signature.inputs_json()))
    assert Signature.parse(written, signature.outputs_json()) == signature


def test_the_json_form_is_the_documented_one() -> None:
    form = {"x": {"dtype": "float32", "shape": [64], "nan": False}, "t": {"dtype": "str"}, "s": spec("bool")}
    assert Signature.parse(form).inputs_json() == form
    assert Signature.parse(form).outputs_json() is None
    assert FREE.inputs_json() is None


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], "inputs: expected"),
        ({}, "inputs: declare at least one"),
        ({"x": None}, "'x': expected dtype"),
        ({"x": {"shape": [1]}}, "'x': expected dtype"),
        ({"x": spec("float32", 1, color=1)}, "'x': expected dtype"),
        ({"x": {"dtype": "float32"}}, "'x': an array needs a shape"),
        ({"x": spec("complex64", 1)}, "'x': dtype is one of bool, int8.*got 'complex64'"),
        ({"x": spec("object", 1)}, "'x': dtype is one of"),
        ({"x": {"dtype": np.dtype("float32"), "shape": [1]}}, "'x': dtype is one of"),
        ({"x": {"dtype": [], "shape": [1]}}, "'x': dtype is one of"),
        ({"x": spec("float32", -2)}, "'x': shape is a list"),
        ({"x": spec("float32", 0)}, "'x': shape is a list"),
        ({"x": {"dtype": "float32", "shape": [True]}}, "'x': shape is a list"),
        ({"x": {"dtype": "float32", "shape": 64}}, "'x': shape is a list"),
        ({"x": {"dtype": "float32", "shape": "64"}}, "'x': shape is a list"),
        ({"x": {"dtype": "float32", "shape": [1] * 32}}, "'x': shape is a list"),
        ({"x": spec("str", 3)}, "'x': str takes no shape"),
        ({"x": spec("float32", 1, nan="no")}, "'x': nan is true or false"),
        ({"": spec("float32")}, "a field's name"),
        ({3: spec("float32")}, "a field's name"),
        ({"\ud800": spec("float32")}, "a field's name"),
        ({"x" * 101: spec("float32")}, "a field's name"),
    ],
)
def test_a_malformed_signature_is_refused_naming_the_field(inputs: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        Signature.parse(inputs)
    assert str(caught.value).isascii()


def test_the_same_name_twice_is_refused() -> None:
    with pytest.raises(InvalidInput, match="each name once"):
        Signature((Field("x", "str"), Field("x", "json")))


# One sample


def test_a_fitting_array_passes_as_it_is() -> None:
    x = np.zeros(64, "f4")
    assert DIGITS.row(x)["x"] is x
    assert DIGITS.row({"x": x})["x"] is x


def test_a_fitting_array_costs_little() -> None:
    x = np.zeros(64, "f4")
    best = min(timeit.repeat(lambda: DIGITS.row(x), number=1000, repeat=20)) / 1000
    assert best < 30e-6  # 10 times what it should be, for busy machines


@given(nps.arrays(st.sampled_from([*ARRAY_DTYPES]), (2, 3)), st.sampled_from([*ARRAY_DTYPES]))
def test_an_array_is_converted_as_a_list_of_the_same_numbers_is(array: np.ndarray[Any, Any], dtype: str) -> None:
    if array.dtype.kind == "b":
        array = array.astype("u1")  # among numbers a list may hold no bools; NumPy counts them as numbers
    field = one(dtype, 2, -1)
    try:
        wanted = field.row(array.tolist())["x"]
    except InvalidInput:
        with pytest.raises(InvalidInput, match=r"input 'x': .* does not fit|convert it with \.astype\('bool'\)"):
            field.row(array)
        return
    row = field.row(array)["x"]
    assert row.dtype == wanted.dtype == dtype
    assert np.array_equal(row, wanted, equal_nan=row.dtype.kind == "f")


@pytest.mark.parametrize(
    ("array", "dtype", "said"),
    [
        (np.array([2.0**63]), "int64", "9.223372036854776e+18 does not fit int64"),
        (np.array([1.5]), "int64", "1.5 does not fit int64"),
        (np.array([np.nan]), "int32", "nan does not fit int32"),
        (np.array([3_000_000_000]), "int32", "3000000000 does not fit int32"),
        (np.array([-1]), "uint64", "-1 does not fit uint64"),
        (np.array([2**64 - 1], "u8"), "int64", "18446744073709551615 does not fit int64"),
        (np.array([1e300]), "float32", "1e+300 does not fit float32"),
        (np.array([70_000]), "float16", "70000 does not fit float16"),
    ],
)
def test_a_number_of_an_array_that_would_change_is_refused(array: np.ndarray[Any, Any], dtype: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        one(dtype, 1).row(array)
    assert str(caught.value) == f"input 'x': {said}"


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.eye(4, 3, dtype="f4")),
        np.eye(8, 3, dtype="f4")[::2],
        np.eye(4, 3).astype(">f4"),
        np.eye(4, 3, dtype="f2"),
    ],
)
def test_rows_are_contiguous_whatever_the_layout_sent(array: np.ndarray[Any, Any]) -> None:
    row = one("float32", 4, 3).row(array)["x"]
    assert row.flags.c_contiguous
    assert row.dtype == np.dtype("f4")
    assert np.array_equal(row, array)


def test_tensors_are_taken_as_arrays() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(64, requires_grad=True)
    assert np.array_equal(DIGITS.row(tensor)["x"], np.ones(64))
    assert np.array_equal(DIGITS.row(tensor.double())["x"], np.ones(64))
    with pytest.raises(InvalidInput, match=r"got complex64 of shape \[64\]; convert it with \.to\(torch\.float32\)"):
        DIGITS.row(torch.ones(64, dtype=torch.complex64))
    with pytest.raises(InvalidInput, match=r"input 'x': .*bfloat16"):
        DIGITS.row(tensor.bfloat16())
    assert np.array_equal(FREE.row({"a": [tensor]})["a"][0], np.ones(64))


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        (np.zeros((8, 8), "f4"), r"got float32 of shape [8, 8]; use .reshape([64])"),
        (np.zeros((5, 64), "f4"), r"got float32 of shape [5, 64]; if this is a batch, pass batched=True"),
        (np.zeros(63, "f4"), r"got float32 of shape [63]; send it in the declared shape"),
        (np.zeros(64, "c16"), r"got complex128 of shape [64]; convert it with .astype('float32')"),
        (np.zeros(64, object), r"got object of shape [64]; convert"),
        (np.float64(1), r"got float32 of shape []"),
        ([[0.0] * 8] * 8, r"got list of shape [8, 8]; arrange the values in the shape [64]"),
        ([], r"got list of shape [0]"),
        (None, r"got None"),
        ("text", r"got str 'text'"),
        (b"x", r"got bytes b'x'"),
        ({1, 2}, r"got set {1, 2}"),
    ],
)
def test_a_value_that_does_not_fit_is_told_what_was_expected_and_what_to_do(given_: Any, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        DIGITS.row(given_)
    assert str(caught.value).startswith("input 'x': expected float32 of shape [64], got ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "given_", "expected"),
    [
        ("float32", [1, 2.5, math.inf], [1, 2.5, math.inf]),
        ("float64", (1, 2, 2**60), [1, 2, 2**60]),
        ("float32", [2**100, 0, 1], [2.0**100, 0, 1]),
        ("int64", [1, 2.0, -(2**63)], [1, 2, -(2**63)]),
        ("int64", [2**62 + 1, 1.0, 0], [2**62 + 1, 1, 0]),
        ("uint64", [0, 1, 2**64 - 1], [0, 1, 2**64 - 1]),
        ("uint8", [np.int64(255), 0, np.float32(1)], [255, 0, 1]),
        ("bool", [True, False, np.bool_(True)], [True, False, True]),
    ],
)
def test_lists_of_numbers_are_converted(dtype: str, given_: Any, expected: list[Any]) -> None:
    row = one(dtype, 3).row(given_)["x"]
    assert row.dtype == dtype
    assert row.tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "given_", "said"),
    [
        ("uint8", [0, 256], "256 does not fit uint8"),
        ("uint8", [0, -1], "-1 does not fit uint8"),
        ("int64", [0, 2**63], "does not fit int64"),
        ("int32", [0, 1.5], "1.5 does not fit int32"),
        ("int32", [0, math.nan], "nan does not fit int32"),
        ("int32", [0, math.inf], "inf does not fit int32"),
        ("float32", [0, 1e300], "does not fit float32"),
        ("float16", [0, 70000], "70000 does not fit float16"),
        ("float64", [0, 10**400], "does not fit float64"),
        ("float64", [0.5, 10**5000], "does not fit float64"),
        ("float32", [0, True], "got bool True among the values"),
        ("bool", [True, 1], "got int 1 among the values"),
        ("float32", [0, None], "got None among the values"),
        ("float32", [0, "1"], "got str '1' among the values"),
        ("float32", [0, 1j], "got complex 1j among the values"),
        ("float32", [0, [1]], "got list .* among the values"),
        ("float32", [np.zeros(2), np.zeros(2)], "np.stack"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(dtype: str, given_: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        one(dtype, 2).row(given_)


def test_plain_numbers_are_scalars() -> None:
    assert one("float32").row(2)["x"].shape == ()
    assert one("int8").row(np.int8(2))["x"] == 2
    assert one("bool").row(True)["x"].dtype == np.dtype(bool)
    with pytest.raises(InvalidInput):
        one("float32").row(True)


def test_ragged_and_endless_lists_are_refused() -> None:
    signature = one("float32", -1, -1)
    with pytest.raises(InvalidInput, match="ragged"):
        signature.row([[1, 2], [3]])
    with pytest.raises(InvalidInput, match="ragged"):
        signature.row([[1, 2], 3])
    loop: list[Any] = []
    loop += [loop, loop]
    with pytest.raises(InvalidInput):
        signature.row(loop)
    assert signature.row([[1, 2], [3, 4]])["x"].shape == (2, 2)
    assert signature.row([[], []])["x"].shape == (2, 0)


def test_where_finite_numbers_are_asked_for_the_first_other_one_is_pointed_at() -> None:
    strict = one("float32", 2, 3, nan=False)
    array = np.zeros((2, 3), "f4")
    assert strict.row(array)["x"] is array
    array[1, 2] = math.nan
    with pytest.raises(InvalidInput, match=r"input 'x': holds nan at \[1, 2\]"):
        strict.row(array)
    with pytest.raises(InvalidInput, match=r"holds inf at \[3, 0, 0\]"):
        strict.rows(np.where(np.arange(4)[:, None, None] == 3, np.float32("inf"), np.zeros((4, 2, 3), "f4")))
    with pytest.raises(InvalidInput, match=r"holds nan at \[\]"):
        one("float64", nan=False).row(math.nan)
    assert np.isnan(one("float32", 2, 3).row(array)["x"]).any()


def test_inputs_that_are_missing_or_unknown_are_named() -> None:
    assert PAIR.row({"text": "a", "ids": [1, 2]})["text"] == "a"
    with pytest.raises(InvalidInput, match=r"missing \['text'\], unknown \['txt'\]; give exactly \['ids', 'text'\]"):
        PAIR.row({"ids": [1], "txt": "a"})
    with pytest.raises(InvalidInput, match=r"inputs: expected a dict with \['ids', 'text'\], got int 3"):
        PAIR.row(3)
    with pytest.raises(InvalidInput, match=r"unknown \['z'\]"):
        DIGITS.row({"x": np.zeros(64, "f4"), "z": 1})


def test_text_bytes_and_json_are_checked() -> None:
    assert value("str").row("é") == {"x": "é"}
    assert value("str").row(np.str_("a")) == {"x": "a"}
    assert value("bytes").row(bytearray(b"a")) == {"x": b"a"}
    assert value("json").row([1, {"a": (None,)}]) == {"x": [1, {"a": [None]}]}
    for dtype, wrong in [("str", b"a"), ("str", None), ("str", "\ud800"), ("bytes", "a"), ("bytes", 3)]:
        with pytest.raises(InvalidInput, match="input 'x': "):
            value(dtype).row(wrong)
    for wrong_json in (np.zeros(2), {1: 2}, {"a": {1}}, [b"x"], 2**70):
        with pytest.raises(InvalidInput, match="input 'x': "):
            value("json").row(wrong_json)


def test_a_json_input_may_be_a_dict_of_any_keys() -> None:
    assert value("json").row({"a": 1}) == {"x": {"a": 1}}
    assert value("json").row({"x": 1, "y": 2}) == {"x": {"x": 1, "y": 2}}
    assert value("json").row({"x": {"a": 1}}) == {"x": {"a": 1}}
    assert value("json").row({}) == {"x": {}}


def test_an_undeclared_value_passes_as_what_the_codec_carries() -> None:
    assert FREE.row({"a": (1, "b")}) == {"a": [1, "b"]}
    with pytest.raises(InvalidInput):
        FREE.row({1, 2})


# A batch


def test_a_batch_is_split_into_the_rows_it_holds() -> None:
    batch = np.arange(128, dtype="f4").reshape(2, 64)
    rows = DIGITS.rows(batch)
    assert [row["x"].tolist() for row in rows] == batch.tolist()
    assert all(row["x"].flags.c_contiguous and row["x"].base is not None for row in rows)
    assert [row["x"].shape for row in one("float32").rows([1, 2])] == [(), ()]


def test_text_comes_in_a_batch_as_a_list() -> None:
    assert value("str").rows(["a", "b"]) == [{"x": "a"}, {"x": "b"}]
    assert value("str").rows(np.array(["a", "b"])) == [{"x": "a"}, {"x": "b"}]
    assert value("json").rows([{"a": 1}, 2]) == [{"x": {"a": 1}}, {"x": 2}]
    with pytest.raises(InvalidInput, match=r"input 'x'\[1\]: expected str, got int 3"):
        value("str").rows(["a", 3])
    for wrong in ("ab", b"ab", None, np.array("a")):
        with pytest.raises(InvalidInput, match="'x': a batch is"):
            value("str").rows(wrong)


def test_several_inputs_share_one_number_of_rows() -> None:
    rows = PAIR.rows({"ids": [[1, 2], [3, 4]], "text": ["a", "b"]})
    assert [row["text"] for row in rows] == ["a", "b"]
    assert rows[1]["ids"].tolist() == [3, 4]
    with pytest.raises(InvalidInput, match="'ids' has 1, 'text' has 2"):
        PAIR.rows({"ids": [[1, 2]], "text": ["a", "b"]})


@pytest.mark.parametrize(
    ("signature", "empty"),
    [
        (DIGITS, np.zeros((0, 64), "f4")),
        (value("str"), []),
        (FREE, []),
        (FREE, {}),
        (FREE, np.zeros(0)),
        (FREE, {"a": []}),
    ],
)
def test_an_empty_batch_is_refused(signature: Signature, empty: Any) -> None:
    with pytest.raises(InvalidInput, match="at least 1"):
        signature.rows(empty)


def test_a_batch_without_its_leading_dimension_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"expected float32 of shape \[-1, 64\], got float32 of shape \[64\]"):
        DIGITS.rows(np.zeros(64, "f4"))


@pytest.mark.parametrize("wrap", [np.array, np.float16, list])
def test_a_batch_of_cells_may_come_as_an_array(wrap: Callable[[list[float]], Any]) -> None:
    rows = Signature.parse({"age": spec("float32", cell=True)}).rows(wrap([41.0, 0.5, math.nan]))
    assert [float(row["age"]) for row in rows[:2]] == [41.0, 0.5]
    assert math.isnan(rows[2]["age"])


def test_an_undeclared_batch_is_an_array_a_list_or_a_dict_of_those() -> None:
    assert [row.tolist() for row in FREE.rows(np.eye(2))] == [[1, 0], [0, 1]]
    assert FREE.rows([1, "a"]) == [1, "a"]
    assert FREE.rows({"a": np.arange(2), "b": ["x", "y"]}) == [{"a": 0, "b": "x"}, {"a": 1, "b": "y"}]
    for wrong in ("ab", 3, None, np.array(3), {"a": 3}, {"a": [1], "b": [1, 2]}):
        with pytest.raises(InvalidInput):
            FREE.rows(wrong)


# What a model gives


def test_one_output_comes_back_as_itself_and_several_as_a_dict() -> None:
    y = np.zeros(64, "f4")
    assert DIGITS.output(y) is y
    assert DIGITS.output({"y": y}) is y
    assert PAIR.output({"a": np.float32(1), "b": "x"}) == {"a": 1, "b": "x"}
    assert FREE.output({"y": (1,)}) == {"y": [1]}


def test_an_output_must_be_exactly_what_was_declared() -> None:
    with pytest.raises(InvalidInput, match=r"output 'y': expected float64 of shape \[2\], got float32 of shape \[2\]"):
        one("float64", 2).output(np.zeros(2, "f4"))
    with pytest.raises(InvalidInput, match="correct the model or its signature"):
        one("float64", 2).output(np.zeros(3))
    with pytest.raises(InvalidInput, match=r"outputs: missing \['b'\]"):
        PAIR.output({"a": np.float32(1)})
    with pytest.raises(InvalidInput, match="output 'y': expected str, got int 3"):
        value("str").output(3)


def test_an_output_may_hold_nan() -> None:
    assert np.isnan(one("float32", 1, nan=False).output(np.array([math.nan], "f4"))).all()


# Classes

SCORES = Signature.parse(None, {"s": {"dtype": "float32", "shape": [2], "classes": ["cat", "dog"]}})


def test_a_result_has_its_values_by_class_alone_in_a_batch_and_among_other_outputs() -> None:
    row = np.array([0.25, 0.75], "f4")
    assert SCORES.by_class(row) == {"cat": 0.25, "dog": 0.75}
    assert SCORES.by_class(np.stack([row, row])) == [{"cat": 0.25, "dog": 0.75}] * 2
    both = Signature.parse(None, {"label": {"dtype": "str"}, **(SCORES.outputs_json() or {})})
    assert both.by_class({"label": "dog", "s": row}) == {"label": "dog", "s": {"cat": 0.25, "dog": 0.75}}
    assert both.by_class({"label": ["dog"], "s": row[None]}) == {"label": ["dog"], "s": [{"cat": 0.25, "dog": 0.75}]}
    assert DIGITS.by_class(row) is row
    assert Signature.parse(outputs=both.outputs_json()) == both


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"dtype": "float32", "shape": [3], "classes": ["a", "b"]}, "one for each value of an array of shape"),
        ({"dtype": "float32", "shape": [2], "classes": ["a", "a"]}, "classes are different texts"),
        ({"dtype": "float32", "shape": [2], "classes": [0, 1]}, "classes are different texts"),
        ({"dtype": "float32", "shape": [2], "classes": "ab"}, "got 'ab' for float32"),
        ({"dtype": "float32", "shape": [-1], "classes": ["a"]}, "one for each value"),
        ({"dtype": "float32", "shape": [2, 1], "classes": ["a", "b"]}, "one for each value"),
        ({"dtype": "str", "classes": ["a"]}, "one for each value"),
    ],
)
def test_classes_that_do_not_name_each_value_are_refused(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        Signature.parse(None, {"s": spec})
    with pytest.raises(InvalidInput, match="classes name the values of an output"):
        Signature.parse(SCORES.outputs_json(), None)


# Stacking


def test_rows_that_can_be_stacked_have_one_key() -> None:
    assert stack_key(DIGITS.row([0] * 64)) == stack_key(DIGITS.row(np.ones(64, "f4")))
    assert stack_key({"a": 1, "b": "x"}) == stack_key({"b": "y", "a": 2})
    assert stack_key("a") == stack_key("b")


def test_rows_that_cannot_be_stacked_have_different_keys() -> None:
    rows = [
        np.zeros(2),
        np.zeros(3),
        np.zeros(2, "f4"),
        {"a": np.zeros(2)},
        {"b": np.zeros(2)},
        {"a": 1},
        {"a": "1"},
        1,
        "1",
    ]
    assert len({stack_key(row) for row in rows}) == len(rows)


@given(nps.arrays(st.sampled_from([*ARRAY_DTYPES]), (2, 3)))
def test_a_row_survives_the_codec(array: np.ndarray[Any, Any]) -> None:
    signature = one(array.dtype.name, 2, 3)
    row = signature.row(array)
    back = decode(encode(row))
    assert stack_key(back) == stack_key(row)
    assert signature.row(back)["x"] is back["x"]
