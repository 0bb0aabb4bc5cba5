"""One batch through a model: the guilty row found, its neighbours spared.

Knows models by protocol only. An exception splits the batch until the guilty rows stand alone: k guilty rows among n cost
O(k log n) forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from forebay.contract.errors import ForebayError
from forebay.contract.signature import Row

Predict = Callable[[Sequence[Row]], Sequence[Any]]


def forward(predict: Predict, rows: Sequence[Row]) -> list[Any | Exception]:
    """For each row its output, or the exception that it alone causes."""
    try:
        outputs = list(predict(rows))
        if len(outputs) != len(rows):
            raise ForebayError(f"the model gave {len(outputs)} rows for {len(rows)}; it must give one for each")
    except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to its rows
        if len(rows) == 1:
            return [error]
        middle = len(rows) // 2
        return forward(predict, rows[:middle]) + forward(predict, rows[middle:])
    return outputs
