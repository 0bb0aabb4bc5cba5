"""The number that is explained: of a model's outputs the one that was asked for, or each row's greatest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.references import shown
from forebay.contract.requests.explain import ExplainRequest, explained_field
from forebay.contract.values import as_array, is_array


@dataclass(frozen=True, slots=True)
class Explained:
    """What is explained of each row: `values` `(rows,)` of an output, at the places `targets`."""

    output: str
    targets: Tensor
    values: Tensor


class Scores:
    """Finds the values of the output that a request is for."""

    def __init__(self, spec: ModelVersion, request: ExplainRequest) -> None:
        field = explained_field(spec.signature, request.output)
        self._request = request
        self._name = field.name if field is not None else request.output
        self._classes = field.classes if field is not None else ()

    def of_tensors(self, outputs: Mapping[str, Tensor]) -> tuple[str, Tensor]:
        """The output's name and its values `(rows, values)`."""
        name = self._name if len(outputs) != 1 or self._name in outputs else next(iter(outputs))
        if name is None and len(numeric := [n for n, t in outputs.items() if t.ndim <= 2]) == 1:
            [name] = numeric
        if name is None or name not in outputs:
            raise InvalidInput(f"output {shown(name)}: name one that the model gives: {', '.join(outputs)}")
        values = outputs[name]
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or not values.shape[1]:
            raise InvalidInput(f"explain takes a number or a vector; output {shown(name)} is {list(values.shape[1:])}")
        return self._name or name, values if values.is_floating_point() else values.double()

    def of_rows(self, made: Sequence[Any]) -> tuple[str, Tensor]:
        """The same of rows as they are served."""
        columns = made[0] if isinstance(made[0], Mapping) else {self._name or "output": made[0]}
        found: dict[str, Tensor] = {}
        for name, value in columns.items():
            if self._request.output in (None, name) and _is_numbers(value) and self._name in (None, name):
                values = [row[name] if isinstance(row, Mapping) else row for row in made]
                found[name] = torch.stack([torch.from_numpy(as_array(v).astype("float64")) for v in values])
        if not found:
            raise InvalidInput("the model gives no numbers that explain could take")
        return self.of_tensors(found)

    def explained(self, output: str, values: Tensor) -> Explained:
        """The place that was asked for, or each row's greatest."""
        if not torch.isfinite(values).all():
            raise InvalidInput(f"output {shown(output)} is not finite for this input, so there is nothing to explain")
        target = self._request.target
        if target is None:
            targets = values.argmax(1)
        elif target < values.shape[1]:
            targets = torch.full((len(values),), target, device=values.device)
        else:
            raise InvalidInput(f"target {target}: output {shown(output)} has {values.shape[1]} values, numbered from 0")
        return Explained(output, targets, at(values, targets))

    def told(self, explained: Explained, i: int, width: int) -> dict[str, Any]:
        """What was explained of row i, as its explanation says it."""
        place = int(explained.targets[i])
        target = self._classes[place] if place < len(self._classes) else place
        told = {"method": self._request.method, "output": explained.output, "score": float(explained.values[i])}
        return told | ({"target": target} if width > 1 else {})


def at(values: Tensor, targets: Tensor) -> Tensor:
    """Of values `(rows, values)` those at the targets, `(rows,)`."""
    return values.gather(1, targets[:, None])[:, 0]


def _is_numbers(value: Any) -> bool:
    if is_array(value):
        array = as_array(value)
        return array.dtype.kind in "biuf" and array.ndim <= 1
    return isinstance(value, int | float)
