"""`regressor` and `classifier`: a linear model or a multilayer perceptron on the columns of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from forebay.contract.requests.recipes import CLASSES, NUMBERS
from forebay.datasets.columns import Values
from forebay.datasets.reading.table import Table
from forebay.worker.trainer.preprocessing import CATEGORY, encode_columns, fields, fit_columns, width


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

    def groups(self) -> tuple[int, ...]:
        """Of each number of a row's vector the number that it is part of: those of a category are one."""
        made: list[int] = []
        for spec in self.state["columns"]:
            first, numbers = max(made, default=-1) + 1, width([spec])
            made += [first] * numbers if spec["kind"] == CATEGORY else range(first, first + numbers)
        return tuple(made)

    def attributed(
        self, numbers: NDArray[Any], columns: Mapping[str, Values], slopes: bool
    ) -> dict[str, NDArray[np.float32]]:
        """Of numbers `(rows, width)` those of each column: a category has the sum of its one-hot numbers."""
        del columns
        made, start = dict[str, NDArray[np.float32]](), 0
        for spec in self.state["columns"]:
            stop = start + width([spec])
            part, start = numbers[:, start:stop], stop
            if spec["kind"] == CATEGORY:
                made[spec["name"]] = part.sum(1, dtype=np.float32)
                continue
            if slopes:
                part = part / np.asarray(spec.get("deviation", 1.0))
            made[spec["name"]] = part.astype(np.float32).reshape(-1, *spec["shape"])
        return made

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
