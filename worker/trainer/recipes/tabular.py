"""`regressor` and `classifier`: a linear model or a multilayer perceptron on the columns of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from numpy.typing import NDArray
from torch import nn

from forebay.contract.requests.recipes import CLASSES, NUMBERS
from forebay.datasets.columns import Values
from forebay.datasets.reading.table import Table
from forebay.worker.trainer.preprocessing import encode_columns, fields, fit_columns, width


class Columns:
    """Columns of a table as one vector for each row."""

    def __init__(self, params: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
        self._params = params
        self.state = dict(state or {})

    def fit(self, rows: Table, missing: str) -> None:
        self.state = {
            "columns": fit_columns(rows, self._params["categorical"], missing, self._params.get("normalize", False))
        }

    def encode(self, columns: Mapping[str, Values]) -> tuple[NDArray[Any], ...]:
        return (encode_columns(self.state["columns"], columns),)

    def inputs(self) -> dict[str, Any]:
        return fields(self.state["columns"])


class Regressor(Columns):
    """A number; without hidden layers by linear regression."""

    task: ClassVar[str] = NUMBERS

    def build(self, outputs: int) -> nn.Module:
        return perceptron(width(self.state["columns"]), self._params["hidden"], outputs, self._params["dropout"])


class Classifier(Regressor):
    """A class; without hidden layers by logistic regression."""

    task: ClassVar[str] = CLASSES


def perceptron(inputs: int, hidden: Sequence[int], outputs: int, dropout: float) -> nn.Sequential:
    """`(rows, inputs)` to `(rows, outputs)`."""
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [nn.Linear(inputs, units), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        inputs = units
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
