"""From columns to what a model takes: the same as row by row, each bad row alone, nothing taken that cannot fit."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import BatchRequest, InputFile, Piece, Shard
from forebay.contract.requests.request import decode, encode
from forebay.contract.signature import Field, Signature
from forebay.datasets.columns import field_type, from_numpy, from_values, value_type
from forebay.datasets.formats.source import Chunk
from forebay.datasets.planning.checking import misfit, name_columns
from forebay.datasets.reading.inputs import Inputs, convert

VECTOR = Signature.parse({"x": {"dtype": "float32", "shape": [3]}})


def converted(column: Any, signature: Signature = VECTOR, name: str = "x") -> Inputs:
    return convert(Chunk({"c": column}, np.arange(len(column))), {name: ("c",)}, signature, "parquet")


NUMBERS = st.floats(-1e6, 1e6, width=32)
ROWS = st.lists(st.one_of(st.none(), st.lists(NUMBERS, max_size=4)), min_size=1, max_size=20)


@given(ROWS)
def test_lists_of_any_length_and_nulls_give_the_good_rows_and_an_error_for_each_other(rows: list[Any]) -> None:
    for column in (pa.array(rows, pa.list_(pa.float32())), pa.array(rows, pa.large_list(pa.float64())), rows):
        inputs = converted(column)
        good = [i for i, row in enumerate(rows) if row is not None and len(row) == 3]
        assert list(inputs.good) == good
        assert sorted(inputs.bad) == [i for i in range(len(rows)) if i not in good]
        found = [row["x"].tolist() for row in inputs.rows()]
        assert found == [rows[i] for i in good]


@given(st.lists(st.lists(st.one_of(st.none(), NUMBERS), min_size=3, max_size=3), min_size=1, max_size=10))
def test_a_null_within_a_vector_is_that_rows_error(rows: list[Any]) -> None:
    inputs = converted(pa.array(rows, pa.list_(pa.float32(), 3)))
    assert list(inputs.good) == [i for i, row in enumerate(rows) if None not in row]


def test_a_fixed_size_list_becomes_an_array_without_a_copy() -> None:
    flat = np.arange(30, dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), 3).slice(2, 5)
    values = converted(column).values["x"]
    assert isinstance(values, np.ndarray)
    assert values.shape == (5, 3)
    assert values.base is not None
    np.testing.assert_array_equal(values, flat.reshape(10, 3)[2:7])


def test_nan_is_refused_row_by_row_where_the_model_says_so() -> None:
    signature = Signature.parse({"x": {"dtype": "float32", "shape": [2], "nan": False}})
    column = pa.array([[1.0, 2.0], [float("nan"), 1.0], [float("inf"), 1.0]], pa.list_(pa.float32(), 2))
    assert sorted(converted(column, signature).bad) == [1, 2]


def test_numbers_too_large_for_the_declared_type_are_errors_alone() -> None:
    signature = Signature.parse({"x": {"dtype": "int8", "shape": []}})
    inputs = converted(pa.array([1, 300, -128]), signature)
    assert (list(inputs.good), sorted(inputs.bad)) == ([0, 2], [1])


def test_a_flat_list_takes_a_declared_shape_of_several_dimensions() -> None:
    signature = Signature.parse({"x": {"dtype": "float32", "shape": [2, 2]}})
    values = converted(pa.array([[1, 2, 3, 4]], pa.list_(pa.int64(), 4)), signature).values["x"]
    assert np.asarray(values).tolist() == [[[1.0, 2.0], [3.0, 4.0]]]


def test_columns_without_a_declared_input_are_the_values_themselves() -> None:
    free = convert(Chunk({"c": pa.array(["a", None, "b"])}, np.arange(3)), {"input": ("c",)}, Signature(), "parquet")
    assert free.rows() == ["a", "b"]
    assert sorted(free.bad) == [1]


FITS = [
    ("float32", [3], pa.list_(pa.float64(), 3), True),
    ("float32", [3], pa.list_(pa.float64()), True),
    ("float32", [3], pa.list_(pa.float32(), 4), False),
    ("float32", [3], pa.list_(pa.string()), False),
    ("float32", [3], pa.float32(), False),
    ("float32", [], pa.int64(), True),
    ("int64", [], pa.float64(), False),
    ("bool", [], pa.int8(), False),
    ("float32", [-1], pa.list_(pa.float32()), True),
    ("str", None, pa.large_string(), True),
    ("str", None, pa.dictionary(pa.int32(), pa.string()), True),
    ("str", None, pa.binary(), False),
    ("bytes", None, pa.binary(), True),
    ("json", None, pa.struct([("a", pa.int64())]), True),
    ("uint8", [-1, -1, 3], pa.binary(), True),
    ("uint8", [32, 32], pa.struct([("bytes", pa.large_binary()), ("path", pa.string())]), True),
    ("uint8", [-1, -1, 3], pa.struct([("path", pa.string())]), False),
    ("uint8", [3, 32, 32], pa.binary(), False),
    ("uint8", [64], pa.binary(), False),
    ("float32", [32, 32, 3], pa.binary(), False),
]


@pytest.mark.parametrize(("dtype", "shape", "kind", "fits"), FITS)
def test_a_type_that_can_never_meet_the_signature_is_told(dtype: str, shape: Any, kind: Any, fits: bool) -> None:
    field = Field.parse("x", {"dtype": dtype} | ({} if shape is None else {"shape": shape}))
    assert (misfit(field, [kind], "parquet") is None) is fits


TWO = Signature.parse({"a": {"dtype": "str"}, "b": {"dtype": "str"}})


@pytest.mark.parametrize(
    ("given_", "signature", "types", "expected"),
    [
        (None, VECTOR, ["x", "y"], {"x": ("x",)}),
        (None, VECTOR, ["z"], {"x": ("z",)}),
        ("z", VECTOR, ["z", "y"], {"x": ("z",)}),
        (["p", "q", "r"], VECTOR, ["p", "q", "r"], {"x": ("p", "q", "r")}),
        (None, TWO, ["b", "a"], {"a": ("a",), "b": ("b",)}),
        (["l", "r"], TWO, ["l", "r"], {"a": ("l",), "b": ("r",)}),
        ({"b": "l", "a": "r"}, TWO, ["l", "r"], {"b": ("l",), "a": ("r",)}),
        (["l", "r"], Signature(), ["l", "r"], {"l": ("l",), "r": ("r",)}),
    ],
)
def test_columns_find_their_inputs(given_: Any, signature: Signature, types: list[str], expected: Any) -> None:
    assert name_columns(given_, signature, dict.fromkeys(types), "parquet") == expected


@pytest.mark.parametrize(
    ("given_", "signature", "message"),
    [
        (None, VECTOR, "name the column that goes into the model"),
        (["a", "b", "c"], TWO, "the model has 2 inputs, 'a', 'b'"),
        ({"a": "l"}, TWO, "name one for each input"),
        ([], VECTOR, "expected column names"),
    ],
)
def test_columns_that_leave_it_open_are_refused(given_: Any, signature: Signature, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        name_columns(given_, signature, dict.fromkeys(["l", "r"]), "parquet")


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_outputs_become_typed_columns_whole_or_one_by_one(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).random((5, *shape)).astype(np.float32)
    field = Field("y", "float32", shape)
    one_by_one = from_values(list(values), field_type(field))
    assert from_numpy(values).cast(field_type(field)).equals(one_by_one)
    assert one_by_one.to_pylist() == values.tolist()


def test_an_output_without_a_type_of_its_own_becomes_json() -> None:
    kind = value_type({"a": [1, None]})
    assert from_values([{"a": [1, None]}, {"b": np.float32(2)}], kind).to_pylist() == ['{"a": [1, null]}', '{"b": 2.0}']


def test_a_request_and_its_pieces_come_back_as_they_went() -> None:
    request = BatchRequest(
        (InputFile("a.parquet", 3),),
        "out",
        "parquet",
        {"x": ("a", "b")},
        ("id",),
        {"id": "int64"},
        7,
        "csv",
        100,
        3,
        0.5,
    )
    assert decode(encode(request), BatchRequest) == request
    pieces = (Piece(0, 1, 2), Piece(3, 0, -1))
    assert decode(encode(pieces), tuple[Piece, ...]) == pieces
    assert Shard(pieces, 1, 1).part == "part-000000-000000000000001"
    for data in (b"", b"[]", b"{}", b'{"files": 3}', b'{"files": [], "columns": {}}'):
        with pytest.raises(InvalidInput):
            decode(data, BatchRequest)


def test_the_fingerprint_is_that_of_what_was_asked_for() -> None:
    base = BatchRequest((InputFile("a", 3),), "out", "csv", {"x": ("a",)}, row_bytes=5)
    guessed = BatchRequest((InputFile("a", 3),), "out", "csv", {"x": ("a",)}, row_bytes=9)
    grown = BatchRequest((InputFile("a", 4),), "out", "csv", {"x": ("a",)}, row_bytes=5)
    assert base.fingerprint("m/1") == guessed.fingerprint("m/1")
    assert len({base.fingerprint("m/1"), base.fingerprint("m/2"), grown.fingerprint("m/1")}) == 3
