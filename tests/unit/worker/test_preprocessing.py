"""Columns to vectors: fitted on the training rows alone, gaps filled as asked, the same for one row as for many."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from forebay.contract.errors import InvalidInput
from forebay.datasets.reading.table import Table
from forebay.worker.trainer.preprocessing import encode_columns, fields, fit_columns, is_missing, width

MIXED = {"n": np.array([1.0, 3.0, np.nan]), "c": ["a", None, "b"], "v": np.array([[1, 2], [3, 4], [5, 6]])}


def fit(
    columns: dict[str, object], missing: str = "drop", normalize: bool = True, categorical: tuple[str, ...] = ()
) -> list:
    return fit_columns(Table(columns, 3), categorical, missing, normalize)  # type: ignore[arg-type]


def test_numbers_are_scaled_categories_are_one_hot_and_vectors_by_component() -> None:
    specs = fit(MIXED, "mean")
    made = encode_columns(specs, MIXED)
    assert made.shape == (3, width(specs)) == (3, 5)
    np.testing.assert_allclose(made[:, 0], [-1, 1, 0])  # the gap is filled with the mean
    np.testing.assert_array_equal(made[:, 1:3], [[1, 0], [1, 0], [0, 1]])  # ... with the most frequent, by name
    np.testing.assert_allclose(made[:, 3:].mean(0), 0, atol=1e-6)


def test_gaps_become_the_constant() -> None:
    specs = fit({"n": MIXED["n"]}, "constant:9", normalize=False)
    np.testing.assert_array_equal(encode_columns(specs, MIXED), [[1], [3], [9]])
    with pytest.raises(InvalidInput, match="constant 'none' is not a number of float32, but column 'n' holds numbers"):
        fit({"n": MIXED["n"]}, "constant:none")


def test_a_category_that_training_did_not_have_is_nothing_and_numbers_may_be_categories() -> None:
    specs = fit({"zip": np.array([10.0, 20.0, 10.0])}, categorical=("zip",))
    np.testing.assert_array_equal(encode_columns(specs, {"zip": ["20", "30"]}), [[0, 1], [0, 0]])
    assert fields(specs) == {"zip": {"dtype": "str", "nan": False, "cell": True}}


def test_the_signature_takes_gaps_only_where_they_are_filled() -> None:
    assert fields(fit({"n": MIXED["n"]}, "mean")) == {"n": {"dtype": "float32", "shape": [], "cell": True}}
    assert fields(fit({"n": MIXED["n"]})) == {"n": {"dtype": "float32", "shape": [], "nan": False, "cell": True}}


@given(arrays(np.float64, st.integers(2, 20), elements=st.floats(-1e6, 1e6)))
def test_what_is_found_survives_json_and_encodes_each_row_by_itself(values: np.ndarray) -> None:
    specs = json.loads(json.dumps(fit_columns(Table({"x": values}, len(values)), (), "drop", True)))
    whole = encode_columns(specs, {"x": values})
    alone = np.concatenate([encode_columns(specs, {"x": values[i : i + 1]}) for i in range(len(values))])
    np.testing.assert_array_equal(whole, alone)
    assert np.isfinite(whole).all()


def test_a_few_faulty_numbers_are_no_categories() -> None:
    texts = [str(i) for i in range(30)] + ["1O"]
    with pytest.raises(InvalidInput, match="'x': '1O' is not a number, but nearly all its other values are"):
        fit_columns(Table({"x": texts}, 31), (), "drop", True)
    assert fit_columns(Table({"x": texts}, 31), ("x",), "drop", True)[0]["kind"] == "category"


def test_free_text_is_no_category() -> None:
    texts = [f"text {i}" for i in range(1001)]
    with pytest.raises(InvalidInput, match="'x' has 1001 different texts, too many for categories"):
        fit_columns(Table({"x": texts}, 1001), (), "drop", True)


def test_what_is_missing_is_seen_in_every_kind_of_column() -> None:
    assert is_missing(MIXED["n"]).tolist() == [False, False, True]
    assert is_missing(["a", None, float("nan"), "", " ", "NA", "NAN OK"]).tolist() == [False, *[True] * 5, False]
    assert is_missing(np.array([[1.0, np.inf], [1.0, 2.0]])).tolist() == [True, False]
    assert is_missing(np.array([1, 2])).tolist() == [False, False]


@pytest.mark.parametrize("value", [1e9 + 0.1, 2.0**24 + 1, 0.1, 1e-13])
def test_a_column_that_never_varied_counts_for_nothing_and_weighs_another_value_by_its_size(value: float) -> None:
    [spec] = fit_columns(Table({"x": np.full(1000, value)}, 1000), [], "drop", True)
    same, other = encode_columns([spec], {"x": [value, 2 * value]})[:, 0]
    assert same == 0
    assert abs(other) <= 1.01 * value


def test_small_numbers_are_scaled_as_others_are() -> None:
    numbers = np.array([1.0, 2, 3, 4])
    made = [
        encode_columns(fit_columns(Table({"x": x}, 4), [], "drop", True), {"x": x}) for x in (numbers, numbers * 1e-14)
    ]
    np.testing.assert_allclose(made[1], made[0], rtol=1e-5)


def test_truth_values_are_numbers_with_gaps_too_so_that_one_is_true() -> None:
    specs = fit({"b": [True, False, None]}, "mean", normalize=False)
    assert specs[0]["kind"] == "number"
    assert encode_columns(specs, {"b": [True, False, None]})[:, 0].tolist() == [1, 0, 0.5]


@pytest.mark.parametrize("constant", ["nan", "inf", "1e39", "x"])
def test_a_gap_becomes_a_number_that_can_be_computed_with(constant: str) -> None:
    with pytest.raises(InvalidInput, match="is not a number of float32"):
        fit({"x": np.array([1.0, np.nan, 3])}, f"constant:{constant}")
