"""A model's outputs held against the truth: labels, scores and numbers told apart, whatever form they come in."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import InvalidInput
from forebay.worker.kinds.evaluate.comparing import EXACT_VALUES, Comparison

ROWS = 1000


def compared(
    outputs: Any, truth: list[Any], classes: tuple[str, ...] = (), output: str | None = None, rows: int = ROWS
) -> Comparison:
    comparison = Comparison(output, classes, rows)
    comparison.add(outputs, truth, {})
    return comparison


def test_labels_and_probabilities_are_scored_together() -> None:
    outputs = {
        "label": np.array(["a", "b", "b"], object),
        "probabilities": np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], np.float32),
    }
    for form in (outputs, [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]):
        found = compared(form, ["a", "b", "a"], ("a", "b"))
        assert found.metrics()["accuracy"] == pytest.approx(2 / 3)
        assert found.metrics()["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4]).mean(), abs=1e-6)
        assert found.confusion() == [[1, 1], [0, 1]]
        assert (found.rows, found.classes) == (3, ("a", "b"))


def test_scores_of_any_scale_are_labels_by_the_largest() -> None:
    scores = np.array([[-3.0, 2.0, 0.0], [5.0, 1.0, 1.0], [0.0, 0.0, 9.0]], np.float32)
    found = compared({"output": scores}, [1, 0, 1])
    assert found.metrics()["accuracy"] == pytest.approx(2 / 3)
    assert "loss" not in found.metrics()
    assert found.classes == ("0", "1", "2")
    assert found.confusion() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    listed = compared(list(scores), ["1", "0.0", "1.0"])  # out of CSV
    assert listed.confusion() == found.confusion()


@pytest.mark.parametrize("name", ["scores", "probabilities"])
def test_a_row_with_nan_among_its_scores_has_failed_and_no_class_is_its_largest(name: str) -> None:
    scores = np.array([[0.9, 0.1], [np.nan, np.nan], [0.5, np.nan]])
    found = compared({name: scores}, [0, 0, 1], ("0", "1"))
    assert (found.rows, found.failed, found.metrics()["accuracy"]) == (1, 2, 1)
    assert "NaN" in str(found.first_error)
    assert compared({name: scores[1:]}, [0, 1], ("0", "1")).rows == 0


def test_scores_that_are_probabilities_have_a_loss_and_an_area() -> None:
    chances = np.array([[0.75, 0.25], [0.25, 0.75]])
    assert compared({"": chances}, [0, 1], ("0", "1")).metrics() == pytest.approx(
        {"loss": -np.log(0.75), "accuracy": 1, "precision": 1, "recall": 1, "f1": 1, "auroc": 1}
    )


def test_many_rows_keep_no_probabilities_and_come_close() -> None:
    draw = np.random.default_rng(0)
    chances = draw.random((2000, 1)).astype(np.float32)
    truth = (draw.random(2000) < chances[:, 0]).astype(int).tolist()
    pair = {"": np.hstack([1 - chances, chances])}
    exact = compared(pair, truth, ("0", "1")).metrics()
    binned = compared(pair, truth, ("0", "1"), rows=EXACT_VALUES).metrics()
    assert binned["auroc"] == pytest.approx(exact["auroc"], abs=0.005)
    assert {k: v for k, v in binned.items() if k != "auroc"} == {k: v for k, v in exact.items() if k != "auroc"}


def test_floats_are_numbers() -> None:
    for outputs in (
        {"y": np.array([1.0, 2.0, 4.0], np.float32)},
        [np.float32(1), np.float32(2), np.float32(4)],
        [1.0, 2.0, 4.0],
    ):
        found = compared(outputs, ["1", "2.0", "3"])
        assert found.metrics()["mae"] == pytest.approx(1 / 3)
        assert found.confusion() is None
        assert found.classes == ()
    with pytest.raises(InvalidInput, match="gives numbers"):
        compared([1.0], ["red"])


def test_labels_that_nobody_has_listed_are_found() -> None:
    found = Comparison(None, (), ROWS)
    found.add(["cat", "dog"], ["cat", "cat"], {})
    found.add(["dog", "ant"], ["dog", "dog"], {})
    assert found.rows == 4
    assert found.classes == ("ant", "cat", "dog")
    assert found.confusion() == [[0, 0, 0], [0, 1, 1], [1, 0, 1]]
    assert found.metrics()["accuracy"] == pytest.approx(0.5)


def test_whole_numbers_are_labels_in_their_order() -> None:
    assert compared(np.array([10, 9, 2]).tolist(), [10.0, 9.0, 9.0]).classes == ("2", "9", "10")
    assert compared({"y": np.array([3, 3])}, ["3", "3"]).metrics()["accuracy"] == 1  # one class alone
    assert compared({"y": np.array([3, 3])}, ["3", "3"]).confusion() == [[2]]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=60), st.integers(1, 7))
def test_how_the_rows_are_cut_does_not_matter(pairs: list[tuple[str, str]], size: int) -> None:
    found = Comparison(None, (), ROWS)
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        found.add([told for _, told in part], [true for true, _ in part], {})
    assert found.rows == len(pairs)
    assert found.metrics()["accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    counts = found.confusion()
    assert counts is not None
    assert sum(map(sum, counts)) == len(pairs)


def test_the_output_that_is_meant_may_be_named() -> None:
    outputs = {"kind": np.array(["a", "b"], object), "size": np.array([1.0, 2.0])}
    assert compared(outputs, ["a", "a"], output="kind").metrics()["accuracy"] == 0.5
    assert compared(outputs, [1, 2], output="size").metrics()["mae"] == 0
    with pytest.raises(InvalidInput, match="'kind', 'size', but not 'weight'"):
        compared(outputs, [1, 2], output="weight")
    with pytest.raises(InvalidInput, match="'kind', 'size'; name the output"):
        compared(outputs, [1, 2])


def test_rows_that_failed_or_miss_their_target_are_counted_and_left_out() -> None:
    found = Comparison(None, ("a", "b"), ROWS)
    found.add({"": np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])}, ["a", None, float("nan")], {5: ValueError("odd")})
    assert (found.rows, found.failed) == (1, 3)
    assert str(found.first_error) == "odd"
    nothing = compared(["a"], [None])
    assert (nothing.rows, nothing.failed) == (0, 1)
    assert "target is missing" in str(nothing.first_error)


@pytest.mark.parametrize(
    ("outputs", "truth", "classes", "words"),
    [
        ([{"x": 1, "y": 2}], ["a"], (), "name the output"),
        ([[1, 2], [3]], ["a", "b"], (), "neither a label nor a number"),
        ({"": np.zeros((1, 3))}, ["a"], ("a", "b"), "gives 3 scores for 2 classes"),
        ({"": np.array([[1.0, 0.0]])}, ["c"], ("a", "b"), "the target 'c' is not one of the classes a, b"),
        ({"label": ["a"], "probabilities": [[1.0, 0.0]]}, ["a"], (), "the classes of the probabilities"),
    ],
)
def test_what_cannot_be_compared_is_said(outputs: Any, truth: list[Any], classes: tuple[str, ...], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        compared(outputs, truth, classes)
