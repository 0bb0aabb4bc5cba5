"""Columns of rows through a model: who is guilty, and when a batch counts as too large."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature
from forebay.datasets.reading.inputs import Inputs
from forebay.datasets.writing.parts import ModelOutputs
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.kinds.batch import device

Columns = Mapping[str, NDArray[Any]]


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
    return device.run(loaded, inputs, MemoryCeilings(store), ChildMetrics(), lambda *_: None)


@pytest.mark.xfail(strict=True, reason="columns lower the ceiling for a row that does not fit alone; rows do not")
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
