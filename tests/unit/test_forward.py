"""The guilty rows are found in few passes, and their neighbours are spared."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import ForebayError
from forebay.worker.execution.forward import forward


class Model:
    """Doubles its rows, fails whenever a guilty one is among them, and counts its passes."""

    def __init__(self, guilty: frozenset[int] = frozenset()) -> None:
        self.guilty = guilty
        self.passes = 0

    def predict(self, rows: Sequence[int]) -> list[int]:
        self.passes += 1
        bad = sorted(self.guilty.intersection(rows))
        if bad:
            raise ValueError(f"row {bad[0]}")
        return [2 * row for row in rows]


@st.composite
def trials(draw: st.DrawFn) -> tuple[int, frozenset[int]]:
    n = draw(st.integers(1, 200))
    return n, frozenset(draw(st.sets(st.integers(0, n - 1), max_size=min(n, 12))))


@given(trials())
def test_exactly_the_guilty_rows_fail_each_with_its_own_error(trial: tuple[int, frozenset[int]]) -> None:
    n, guilty = trial
    outputs = forward(Model(guilty).predict, range(n))
    assert len(outputs) == n
    for row, output in enumerate(outputs):
        assert str(output) == f"row {row}" if row in guilty else output == 2 * row
        assert isinstance(output, ValueError) == (row in guilty)


@given(trials())
def test_k_guilty_rows_among_n_cost_few_passes(trial: tuple[int, frozenset[int]]) -> None:
    n, guilty = trial
    model = Model(guilty)
    forward(model.predict, range(n))
    assert model.passes <= 2 * len(guilty) * (math.log2(n) + 1) + 1


def test_an_innocent_batch_is_one_pass() -> None:
    model = Model()
    assert forward(model.predict, range(256)) == [2 * row for row in range(256)]
    assert model.passes == 1


@pytest.mark.parametrize("given_rows", [0, 3, 5])
def test_a_wrong_number_of_outputs_is_every_rows_error(given_rows: int) -> None:
    outputs = forward(lambda rows: [0] * given_rows, [1, 2, 3, 4])
    assert all(isinstance(output, ForebayError) for output in outputs)
    assert all(f"gave {given_rows} rows for 1" in str(output) for output in outputs)


def test_a_row_that_makes_outputs_vanish_fails_alone() -> None:
    outputs = forward(lambda rows: [row for row in rows if row != 2], [1, 2, 3, 4])
    assert [outputs[0], *outputs[2:]] == [1, 3, 4]
    assert isinstance(outputs[1], ForebayError)


def test_what_a_model_gives_may_be_any_iterable() -> None:
    def predict(rows: Sequence[int]) -> Any:
        return (row + 1 for row in rows)

    assert forward(predict, [1, 2]) == [2, 3]


def test_outputs_that_are_no_iterable_are_every_rows_error() -> None:
    outputs = forward(lambda rows: None, [1, 2])  # type: ignore[arg-type, return-value]
    assert [type(output) for output in outputs] == [TypeError, TypeError]


def test_a_worker_that_is_told_to_stop_stops() -> None:
    def predict(rows: Sequence[int]) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forward(predict, [1, 2])


def test_a_row_that_fits_nowhere_does_not_make_batches_small_for_all() -> None:
    """Ten rows fit; the eleventh asks for more memory than there is, whatever it shares it with."""

    def predict(rows: Sequence[Any]) -> list[Any]:
        if 7 in rows:
            raise MemoryError("20 GiB")
        return list(rows)

    told: list[int] = []
    results = forward(predict, list(range(11)), told.append)
    assert [i for i, result in enumerate(results) if isinstance(result, MemoryError)] == [7]
    assert told == []


def test_what_fits_in_halves_says_which_size_did_not() -> None:
    def predict(rows: Sequence[Any]) -> list[Any]:
        if len(rows) > 3:
            raise MemoryError("too many")
        return list(rows)

    told: list[int] = []
    assert forward(predict, list(range(12)), told.append) == list(range(12))
    assert min(told) == 6
