"""Rows that are made up to try a version on."""

from typing import Any

import numpy as np
import pytest

from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.requests.batch import CSV, BatchRequest, InputFile
from forebay.contract.signature import Signature
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.execution.trying.rows import trial_rows


class Sized:
    """Takes rows whose `x` has as many values as `length` says."""

    def __init__(self, length: int) -> None:
        self.length = length

    def predict(self, rows):
        if any(row["x"].shape != (self.length,) for row in rows):
            raise ValueError(f"x must have {self.length} values")
        return [row["x"].sum() for row in rows]


def loaded(model: Any = None, **inputs: Any) -> LoadedModel:
    signature = Signature.parse(inputs or {"x": {"dtype": "float32", "shape": [-1]}})
    return LoadedModel(ModelVersion("m", 1, "fake", "", "none", 0, signature), model or Sized(32), 0, warm=True)


def test_random_rows_have_a_length_that_the_model_takes_and_differ_from_one_another():
    rows, source = trial_rows(loaded(), 3)
    assert source == "random values"
    assert [(row["x"].shape, row["x"].dtype) for row in rows] == [((32,), np.float32)] * 3
    assert len({row["x"].tobytes() for row in rows}) == 3


def test_the_same_seed_gives_the_same_rows():
    drawn = [trial_rows(loaded(), 2, seed=seed).rows[1]["x"].tobytes() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_model_that_takes_no_row_says_why_and_what_to_do():
    with pytest.raises(InvalidInput, match=r"no row .* m/1 takes \(ValueError: x must have 7 values\): register"):
        trial_rows(loaded(Sized(7)), 2)


def test_rows_after_an_example_begin_with_it_and_have_no_other_values():
    example = {
        "ids": np.array([101, 7, 9, 102]), "mask": np.ones(4, np.int64), "text": "How warm is the sea?", "note": {"a": "b c"},
        "city": "New York",
    }  # fmt: skip
    fields = {name: {"dtype": "int64", "shape": [4]} for name in ("ids", "mask")}
    others = {"text": {"dtype": "str"}, "note": {"dtype": "json"}, "city": {"dtype": "str", "cell": True}}
    rows, source = trial_rows(loaded(**fields, **others), 20, example=example)
    assert "example" in source
    assert rows[0] is example
    for row in rows[1:]:
        assert set(row["ids"].tolist()) <= {101, 7, 9, 102}
        assert row["mask"].tolist() == [1, 1, 1, 1]
        assert sorted(row["text"].split()) == sorted(example["text"].split())
        assert (row["note"], row["city"]) == (example["note"], "New York")
    assert len({row["ids"].tobytes() for row in rows}) > 5


@pytest.mark.parametrize("example", [np.zeros(4, np.float32), np.ones(4, np.float32), np.float32(7)])
def test_an_example_of_which_all_values_are_the_same_does_not_make_all_rows_the_same(example: Any) -> None:
    field = {"dtype": "float32", "shape": list(example.shape)}
    rows = trial_rows(loaded(x=field), 5, example={"x": example}).rows
    assert rows[0]["x"] is example
    assert all((row["x"].dtype, row["x"].shape) == (np.float32, example.shape) for row in rows)
    assert len({row["x"].tobytes() for row in rows}) == 5
    assert all((row["x"] >= example).all() for row in rows), "a model that takes logarithms goes on to take them"


def test_rows_of_a_data_set_are_its_first_good_ones(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("x\n1\nword\n3\n4\n")
    data = BatchRequest((InputFile(str(file), file.stat().st_size),), "", CSV, {"x": ("x",)}, row_bytes=2)
    number = loaded(x={"dtype": "float32", "shape": []})
    rows, source = trial_rows(number, 2, data=data)
    assert ([float(row["x"]) for row in rows], source) == ([1, 3], "the data set")
    assert len(trial_rows(number, 9, data=data).rows) == 3
