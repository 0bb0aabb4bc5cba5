"""Inputs as people have them: rows and tables of pandas, polars and Arrow, and PIL images."""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from PIL import Image

from forebay.contract.errors import InvalidInput
from forebay.contract.signature import Field, Signature
from forebay.contract.wire.codec import encode
from forebay.producer.inputs import batch, column, sample, several

NAMED = Signature((Field("age", "int64"), Field("city", "str")))
VECTOR = Signature((Field("x", "float32", (2,)),))
WORD = Signature((Field("text", "str"),))
FREE = Signature()
PEOPLE: dict[str, list[Any]] = {"age": [2**53 + 1, 30], "city": ["Bern", "Oslo"]}
TABLES = (pd.DataFrame, pl.DataFrame, pa.table)


@pytest.mark.parametrize("table", TABLES)
def test_each_row_of_a_table_is_a_sample(table: Any) -> None:
    rows = [NAMED.row(row) for row in several(NAMED, table(PEOPLE))]
    assert [(int(row["age"]), row["city"]) for row in rows] == [(2**53 + 1, "Bern"), (30, "Oslo")]
    assert [FREE.row(row)["age"] for row in several(FREE, table(PEOPLE))] == PEOPLE["age"]


@pytest.mark.parametrize("table", TABLES)
def test_numeric_columns_make_the_vector_of_a_model_with_one_input(table: Any) -> None:
    rows = [VECTOR.row(row)["x"].tolist() for row in several(VECTOR, table({"a": [1, 2], "b": [0.5, 1.5]}))]
    assert rows == [[1, 0.5], [2, 1.5]]
    assert [row["x"].tolist() for row in VECTOR.rows(batch(VECTOR, table({"a": [1, 2], "b": [0.5, 1.5]})))] == rows


@pytest.mark.parametrize("table", TABLES)
def test_columns_are_not_guessed_for_a_vector_of_free_length(table: Any) -> None:
    free = Signature((Field("x", "float32", (-1,)),))
    for read in (several, batch):
        with pytest.raises(
            InvalidInput, match=r"'x' takes vectors of any length.*of \['id', 'a'\] send those you mean"
        ):
            read(free, table({"id": [1, 2], "a": [0.5, 1.5]}))
    with pytest.raises(InvalidInput, match="vectors of any length"):
        sample(free, pd.Series({"id": 1, "a": 0.5}))
    assert [free.row(row)["x"].tolist() for row in several(free, table({"x": [[1.0, 2.0], [3.0]]}))] == [[1, 2], [3]]


@pytest.mark.parametrize("table", TABLES)
def test_the_only_column_is_the_only_input(table: Any) -> None:
    texts = table({"question": ["how", "why"]})
    assert [WORD.row(row)["text"] for row in several(WORD, texts)] == ["how", "why"]
    assert [row["text"] for row in WORD.rows(batch(WORD, texts))] == ["how", "why"]


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_no_single_sample(table: Any) -> None:
    with pytest.raises(InvalidInput, match="a table holds many samples: use predict_many"):
        sample(NAMED, table(PEOPLE))


@pytest.mark.parametrize("table", TABLES)
def test_a_column_that_the_model_does_not_take_is_named(table: Any) -> None:
    with pytest.raises(InvalidInput, match=r"unknown \['id'\]"):
        [NAMED.row(row) for row in several(NAMED, table(PEOPLE | {"id": [1, 2]}))]


@pytest.mark.parametrize("table", TABLES)
def test_a_row_keeps_its_names_for_a_model_that_takes_json(table: Any) -> None:
    signature = Signature((Field("body", "json"),))
    rows = [signature.row(row)["body"] for row in several(signature, table(PEOPLE))]
    assert rows[1] == {"age": 30, "city": "Oslo"}
    assert [row["body"] for row in signature.rows(batch(signature, table(PEOPLE)))] == rows


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
    ],
)
def test_a_table_with_two_columns_of_one_name_is_refused(table: Any) -> None:
    with pytest.raises(InvalidInput, match="two columns called 'a'"):
        several(VECTOR, table)


def test_a_series_is_a_row_by_its_labels_or_the_vector_of_the_only_input() -> None:
    row = NAMED.row(sample(NAMED, pd.DataFrame(PEOPLE).iloc[0]))
    assert (int(row["age"]), row["city"]) == (2**53 + 1, "Bern")
    assert VECTOR.row(sample(VECTOR, pd.Series([1, 2.5], index=["a", "b"])))["x"].tolist() == [1, 2.5]
    assert VECTOR.row(sample(VECTOR, pd.Series({"x": [1, 2]})))["x"].tolist() == [1, 2]
    assert [WORD.row(text)["text"] for text in several(WORD, pd.Series(["how", "why"]))] == ["how", "why"]
    with pytest.raises(InvalidInput, match="labels repeat"):
        sample(VECTOR, pd.Series([1, 2], index=["a", "a"]))


@pytest.mark.parametrize(
    ("mode", "shape", "dtype"), [("RGB", (4, 6, 3), "u1"), ("L", (4, 6), "u1"), ("F", (4, 6), "f4")]
)
def test_an_image_is_its_pixels(mode: str, shape: tuple[int, ...], dtype: str) -> None:
    image = Image.new(mode, (6, 4), 7 if mode != "RGB" else (1, 2, 3))
    for pixels in (sample(FREE, image), next(iter(several(FREE, [image]))), sample(FREE, {"a": image})["a"]):
        assert (pixels.shape, pixels.dtype) == (shape, np.dtype(dtype))
    assert pixels.flat[0] == np.asarray(image).flat[0]


@pytest.mark.parametrize("mode", ["P", "CMYK", "YCbCr", "LA", "HSV"])
def test_an_image_whose_numbers_are_not_its_pixels_is_refused(mode: str) -> None:
    with pytest.raises(InvalidInput, match=rf"of mode {mode}; convert it first with \.convert\('RGB'\)"):
        sample(FREE, Image.new("RGB", (6, 4)).convert("L" if mode == "LA" else "RGB").convert(mode))


@pytest.mark.parametrize("value", ["text", b"x", {"a": 1}, 7, np.float32(1)])
def test_one_input_is_not_several(value: Any) -> None:
    with pytest.raises(InvalidInput, match=r"predict_many takes a sequence of inputs, got one .*; use predict"):
        list(several(FREE, value))


def takes(dtype: str, *shape: int, **more: Any) -> Signature:
    return Signature((Field("x", dtype, shape, **more),))


DIGITS = takes("float32", 64)


@pytest.mark.parametrize(
    "signature",
    [DIGITS, takes("int16"), takes("float64", -1, 2), takes("bool", 3), takes("float32", 2, allow_nan=False)],
)
@given(
    nps.arrays(
        st.sampled_from(["f4", ">f4", "f8", "i2", "i8", "u1", "?"]),
        st.sampled_from([(3,), (2, 64), (4, 2), (2, 3), (2, 5, 2), (0, 64)]),
    )
)
def test_a_column_has_the_rows_that_each_of_its_samples_gives_alone(signature: Signature, array: Any) -> None:
    found = column(signature, array)
    if found is not None:
        name, together = found
        rows = [signature.row(each) for each in array]
        assert [encode({name: together[i, ...]}) for i in range(len(array))] == [encode(row) for row in rows]


def test_what_is_no_array_of_numbers_for_an_only_input_has_no_column() -> None:
    array = np.zeros((2, 64), np.float32)
    assert column(DIGITS, array) is not None
    two = Signature((Field("a", "float32", (64,)), Field("b", "str")))
    others = (two, Signature(), Signature((Field("x", "json"),)), takes("float32", 63), takes("float32", cell=True))
    assert [column(signature, array) for signature in others] == [None] * 5
    assert [column(DIGITS, x) for x in (array.tolist(), np.ma.masked_array(array), array.astype(str))] == [None] * 3
