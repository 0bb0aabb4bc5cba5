"""What a trained model gives: labels as text with their probabilities, or numbers in their unit.

Apart from torch it knows nothing, so that serving loads neither Lightning nor torchmetrics.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from torch import Tensor

LABEL, PROBABILITIES = "label", "probabilities"  # the outputs of a classifier


class Target(Struct, frozen=True):
    """What is learned: a column, the labels in the order of their numbers, or the scale that numbers are brought to."""

    name: str
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0


def label_order(label: str) -> tuple[float, str]:
    """To sort labels by: numbers by value, before texts."""
    try:
        number = float(label)
    except ValueError:
        return math.inf, label
    return (number if math.isfinite(number) else math.inf), label


def served(outputs: Tensor, loss: str) -> Tensor:
    """A network's outputs as they are served: probabilities `(rows, classes)`, or scaled numbers `(rows,)`."""
    if loss == "cross-entropy":
        return outputs.softmax(1)
    if loss == "bce":
        chance = outputs.reshape(-1).sigmoid()
        return torch.stack([1 - chance, chance], 1)
    return outputs.reshape(-1)


def in_unit(numbers: Tensor | NDArray[Any], target: Target) -> NDArray[np.float64]:
    """Scaled numbers `(rows,)`, on the CPU, in the target's unit."""
    return np.asarray(numbers, np.float64) * target.deviation + target.mean
