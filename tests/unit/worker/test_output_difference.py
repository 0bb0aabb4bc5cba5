"""How far two versions' outputs are apart, and that what is no number never counts as near."""

import math

import numpy as np
import pytest

from forebay.contract.errors import InvalidInput
from forebay.worker.execution.trying.output_difference import difference


def vector(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_the_largest_differences_of_all_rows_and_outputs_are_told() -> None:
    before = [{"y": vector(1, 2), "n": np.float32(400)}, {"y": vector(0.5, 0), "n": np.float32(0)}]
    after = [{"y": vector(1, 2.5), "n": np.float32(401)}, {"y": vector(0, 0.25), "n": np.float32(0)}]
    found = difference(before, after)
    assert found.rows == 2
    assert found.absolute == 1
    assert found.relative == 1  # of row 1: 0.5 of 0.5
    assert found.scaled == 0.5  # what is above 1 is measured by its size
    assert found.same_argmax == 0.5
    assert found.least_cosine == 0
    assert found.within(0.5)
    assert not found.within(0.49)


def test_equal_outputs_are_not_apart_whatever_they_hold() -> None:
    rows = [{"label": "a", "y": vector(math.inf, -math.inf, 0), "n": 7, "flag": True}]
    found = difference(rows, rows)
    assert (found.absolute, found.relative, found.scaled) == (0, 0, 0)
    assert (found.same_argmax, found.least_cosine, found.mean_cosine) == (1, 1, 1)


@pytest.mark.parametrize(("one", "other"), [
    (vector(1, math.nan), vector(1, math.nan)),
    (vector(1, 2), vector(1, math.nan)),
    (vector(math.nan, 2), vector(1, 2)),
    (vector(1, math.inf), vector(1, 2)),
    (vector(1, math.inf), vector(1, -math.inf)),
    (np.float32(math.nan), np.float32(math.nan)),
    ("cat", "dog"),
])  # fmt: skip
def test_what_is_not_a_number_or_another_text_is_within_no_tolerance(one: object, other: object) -> None:
    assert not difference([vector(1)] * 3 + [one], [vector(1)] * 3 + [other]).within(1e300)


def test_whole_numbers_that_no_float_tells_apart_differ() -> None:
    assert difference([np.int64(2**53)], [np.int64(2**53 + 1)]).absolute == 1


@pytest.mark.parametrize(("one", "other"), [
    ({"a": 1}, {"b": 1}), ({"a": 1}, 1), (vector(1), vector(1, 2)), ("a", 1), ({"a": None}, {"a": None}),
])  # fmt: skip
def test_outputs_of_another_form_are_refused(one: object, other: object) -> None:
    with pytest.raises(InvalidInput, match="compared"):
        difference([one], [other])


def entity(score: float, **fields: object) -> list[object]:
    return [{"entity": "LOC", "score": score, "start": 3, **fields}]


def test_json_is_as_far_apart_as_its_floats_and_never_near_where_anything_else_differs() -> None:
    found = difference([entity(0.5), []], [entity(np.float32(0.75)), []])
    assert (found.absolute, found.scaled) == (0.25, 0.25 / 0.75)
    assert difference([entity(0.5, word="a")], [entity(0.5, word="a")]).absolute == 0
    others: list[object] = [
        [], entity(0.5) * 2, entity(0.5, entity="PER"), entity(0.5, start=4), entity(0.5, end=1), entity(math.nan),
        [{"entity": "LOC", "score": None, "start": 3}],
    ]  # fmt: skip
    for other in others:
        for one in (entity(0.5), entity(math.nan)):
            assert not difference([one], [other]).within(1e300)


def test_outputs_that_are_always_small_are_not_near_because_of_that() -> None:
    rows = [vector(1e-6, 2e-6), vector(3e-6, 1e-6)]
    assert not difference(rows, [vector(0, 0)] * 2).within(0.9)
    assert difference(rows, [row * np.float32(1.00001) for row in rows]).within(1e-4)
    usual = vector(0.5, 0.5)  # beside which those are nothing
    assert difference([*rows, usual], [*[vector(0, 0)] * 2, usual]).within(1e-5)
    assert not difference(
        [{"y": row, "z": usual} for row in rows], [{"y": 0 * row, "z": usual} for row in rows]
    ).within(0.9)


def test_no_rows_say_nothing() -> None:
    with pytest.raises(InvalidInput, match="cannot be compared"):
        difference([], [])
