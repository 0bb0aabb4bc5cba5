"""The guilty rows are found in few passes, their neighbours are spared, and what did not fit lowers the ceiling."""

import gc
import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from forebay.contract.errors import ForebayError
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Field, Signature
from forebay.datasets.reading.inputs import Inputs
from forebay.datasets.writing.outputs import ModelOutputs
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.chunks import chunk_rows, run_chunk
from forebay.worker.execution.engine import Engine, forward
from forebay.worker.execution.model_cache import LoadedModel

Columns = Mapping[str, NDArray[Any]]


class Doubling:
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
    outputs = forward(Doubling(guilty).predict, range(n))
    assert len(outputs) == n
    for row, output in enumerate(outputs):
        assert str(output) == f"row {row}" if row in guilty else output == 2 * row
        assert isinstance(output, ValueError) == (row in guilty)


@given(trials())
def test_k_guilty_rows_among_n_cost_few_passes(trial: tuple[int, frozenset[int]]) -> None:
    n, guilty = trial
    model = Doubling(guilty)
    forward(model.predict, range(n))
    assert model.passes <= 2 * len(guilty) * (math.log2(n) + 1) + 1


def test_an_innocent_batch_is_one_pass() -> None:
    model = Doubling()
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


# Columns


class Ceilings:
    """Takes the place of the ledger's ceilings, and remembers what was lowered."""

    def __init__(self) -> None:
        self.lowered: list[int] = []

    def get(self, name: str, version: int) -> None:
        return None

    def lower(self, name: str, version: int, rows: int) -> None:
        self.lowered.append(rows)


class ColumnModel:
    """Doubles its column; memory runs out when row `glutton` is there, or more than `most` rows are."""

    def __init__(self, glutton: float = -1.0, most: int = 8) -> None:
        self.glutton, self.most = glutton, most

    def predict_columns(self, columns: Columns) -> Columns:
        x = columns["x"]
        if self.glutton in x or len(x) > self.most:
            raise MemoryError("20 GiB")
        return {"y": 2 * x}


def run(model: ColumnModel, rows: int, ceilings: Ceilings) -> ModelOutputs:
    spec = ModelVersion("m", 1, "python", "", "none", 0, Signature(), max_batch_size=8)
    inputs = Inputs({"x": np.arange(rows, dtype=np.float64)}, np.arange(rows))
    store: Any = ceilings
    loaded = LoadedModel(spec, model, 0, True)  # type: ignore[arg-type]
    return run_chunk(Engine(MemoryCeilings(store), ChildMetrics()), loaded, inputs, lambda *_: None)


class RowModel:
    """Refuses row 3, because of another error."""

    def predict(self, rows: list[Any]) -> list[Any]:
        try:
            return [{"y": 1 / (float(row["x"]) - 3)} for row in rows]
        except ZeroDivisionError as error:
            raise ValueError("3") from error


def test_the_errors_of_rows_keep_nothing_else_alive() -> None:
    x = np.arange(8, dtype=np.float64)
    inputs, alive = Inputs({"x": x}, np.arange(8)), weakref.ref(x)
    spec = ModelVersion("m", 1, "python", "", "none", 0, Signature(), max_batch_size=8)
    loaded = LoadedModel(spec, RowModel(), 0, True)  # type: ignore[arg-type]
    engine = Engine(MemoryCeilings(Ceilings()), ChildMetrics())  # type: ignore[arg-type]
    gc.disable()  # which would find it, some time
    try:
        made = run_chunk(engine, loaded, inputs, lambda *_: None)
        del x, inputs
        assert alive() is None
    finally:
        gc.enable()
    [error] = made.errors.values()
    assert (type(error), type(error.__cause__)) == (ValueError, ZeroDivisionError)


def test_a_row_that_fits_nowhere_does_not_make_batches_of_columns_small_for_all() -> None:
    ceilings = Ceilings()
    made = run(ColumnModel(glutton=3.0), 8, ceilings)
    assert made.ok.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert list(made.errors) == [3]
    assert isinstance(made.errors[3], MemoryError)
    assert ceilings.lowered == []


def test_columns_that_fit_in_halves_lower_the_ceiling() -> None:
    ceilings = Ceilings()
    made = run(ColumnModel(most=3), 8, ceilings)
    assert made.ok.tolist() == list(range(8))
    assert made.errors == {}
    assert min(ceilings.lowered) == 2


def test_columns_of_another_length_than_their_rows_fail_every_row() -> None:
    model = ColumnModel()
    model.predict_columns = lambda columns: {"y": columns["x"][:0]}  # type: ignore[method-assign]
    made = run(model, 3, Ceilings())
    assert [type(error) for error in made.errors.values()] == [ForebayError] * 3


@pytest.mark.parametrize(
    ("shape", "batch", "rows"),
    [
        ((224, 224, 3), 64, 64), ((64, 64, 3), 64, 640), ((), 64, 2048), ((), 1024, 16_384), ((2000, 2000, 3), 8, 8),
        ((-1, -1, 3), 64, 2048),
    ],
)  # fmt: skip
def test_a_chunk_is_whole_batches_of_few_bytes(shape: tuple[int, ...], batch: int, rows: int) -> None:
    inputs = (Field("image", "uint8", shape),)
    assert chunk_rows(ModelVersion("m", 1, "python", "", "none", 0, Signature(inputs), max_batch_size=batch)) == rows
