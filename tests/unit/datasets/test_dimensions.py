"""Dimensions are compared with the declared ones one by one, as `predict` does it, in every form that a column comes in."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import BatchRequest
from forebay.contract.signature import Field, Signature
from forebay.datasets.columns import from_numpy, plain
from forebay.datasets.formats.source import Chunk
from forebay.datasets.planning.checking import check_file, misfit
from forebay.datasets.reading.inputs import Inputs, convert
from support.parts import files_of

DIMENSIONS = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


def signature(shape: tuple[int, ...]) -> Signature:
    return Signature((Field("x", "float32", shape),))


def converted(column: Any, shape: tuple[int, ...]) -> Inputs:
    chunk = Chunk({"c": column}, np.arange(len(column)))
    return convert(chunk, {"x": ("c",)}, signature(shape), "parquet")


def takes(shape: tuple[int, ...], value: Any) -> bool:
    try:
        signature(shape).row({"x": value})
    except InvalidInput:
        return False
    return True


@st.composite
def shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A given shape, and a declared one: often the same dimensions in another order, or with free ones."""
    given_ = draw(DIMENSIONS)
    declared = draw(st.one_of(st.permutations(given_).map(tuple), DIMENSIONS))
    return given_, tuple(draw(st.sampled_from([length, length, -1])) for length in declared)


@given(shapes())
def test_a_batch_takes_what_predict_takes_and_a_flat_list(both: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    given_, declared = both
    values = np.arange(2 * np.prod(given_), dtype=np.float32).reshape(2, *given_)
    flat = len(given_) == 1 < len(declared) and -1 not in declared and bool(np.prod(declared) == given_[0])
    expected = bool(takes(declared, values[0]) or flat)
    fixed = from_numpy(values)
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    for column in (fixed, pa.array(values.tolist()), values.tolist(), tensor):
        inputs = converted(column, declared)
        assert (len(inputs.good) == 2) is expected
        if expected:
            shape = declared if flat else given_
            np.testing.assert_array_equal(np.stack([row["x"] for row in inputs.rows()]), values.reshape(2, *shape))
    assert (misfit(Field("x", "float32", declared), [fixed.type], "parquet") is None) is expected
    assert (misfit(Field("x", "float32", declared), [tensor.type], "parquet") is None) is expected


@given(DIMENSIONS.flatmap(lambda shape: st.tuples(st.just(shape), st.permutations(range(len(shape))))), st.booleans())
def test_a_tensors_permutation_is_applied(drawn: tuple[tuple[int, ...], list[int]], gap: bool) -> None:
    stored, order = drawn
    values = np.arange(3 * np.prod(stored)).reshape(3, *stored)
    kind = pa.fixed_shape_tensor(pa.int64(), stored, permutation=order)
    rows: list[Any] = values.reshape(3, -1).tolist()
    storage = pa.array([rows[0], None if gap else rows[1], rows[2]], pa.list_(pa.int64(), int(np.prod(stored))))
    tensor = pa.ExtensionArray.from_storage(kind, storage)
    logical = values.transpose(0, *(i + 1 for i in order))
    expected: list[Any] = logical.tolist()
    assert plain(tensor).to_pylist() == [expected[0], None if gap else expected[1], expected[2]]
    assert plain(tensor.slice(1)).to_pylist() == [None if gap else expected[1], expected[2]]
    inputs = converted(tensor, logical.shape[1:])
    assert list(inputs.good) == ([0, 2] if gap else [0, 1, 2])
    np.testing.assert_array_equal(np.stack([row["x"] for row in inputs.rows()]), logical[inputs.good])


def test_images_with_channels_first_are_refused_for_a_model_with_channels_last(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 3, 8, 8), np.uint8))
    files = files_of(tmp_path / "a.npy")
    request = BatchRequest(files, "", "npy", {"x": ("array",)})
    model = Signature((Field("x", "uint8", (8, 8, 3)),))
    with pytest.raises(InvalidInput, match=r"expected uint8 of shape \[8, 8, 3\], found fixed_size_list.*\[3\]"):
        check_file(request, model, files[0])
    assert not check_file(request, Signature((Field("x", "uint8", (3, 8, 8)),)), files[0]).empty


def test_single_values_make_a_vector_of_length_one_but_a_list_is_no_single_value() -> None:
    for column in (pa.array([1.0, 2.0]), pa.array(["1", "2"])):
        assert [row["x"].tolist() for row in converted(column, (1,)).rows()] == [[1.0], [2.0]]
    assert not len(converted(pa.array([[1.0], [2.0]], pa.list_(pa.float64(), 1)), ()).good)
