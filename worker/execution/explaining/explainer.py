"""A loaded version as a model whose predictions are explanations: the engine runs their batches as it runs predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.explain import ABLATION, ExplainRequest, baseline_row, explained
from forebay.contract.signature import ARRAY_DTYPES, Row
from forebay.worker.execution.ceilings import MemoryCeilings, is_out_of_memory
from forebay.worker.execution.explaining.arrays import explain_arrays
from forebay.worker.execution.explaining.parts import explain_parts
from forebay.worker.execution.explaining.scores import Scores
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.runtimes.tensors import Differentiable, by_input, floating, stack

PASS_BYTES = 32 << 20  # of inputs that go forward together: steps of gradients, or covered copies, of a batch's rows


def explaining(loaded: LoadedModel, request: ExplainRequest, ceilings: MemoryCeilings) -> LoadedModel:
    """The version whose outputs are explanations of what `loaded` predicts."""
    return replace(
        loaded,
        spec=replace(loaded.spec, signature=explained(loaded.spec.signature)),
        model=Explainer(loaded, request, ceilings),
    )


class Explainer:
    """Explains rows by what `loaded` gives for them. How many copies of rows go forward together, its ceilings learn."""

    def __init__(self, loaded: LoadedModel, request: ExplainRequest, ceilings: MemoryCeilings) -> None:
        self._loaded, self._request, self._ceilings = loaded, request, ceilings
        self._fields = {field.name: field for field in loaded.spec.signature.inputs or ()}
        told = explained(loaded.spec.signature).outputs or ()
        self._dtypes = {field.name: ARRAY_DTYPES[field.dtype] for field in told if field.dtype in ARRAY_DTYPES}
        self._scores = Scores(loaded.spec, request)

    def predict(self, rows: Sequence[Row]) -> list[Row]:
        """One explanation per row, in order."""
        at_once = min(
            self._ceilings.rows(self._loaded.spec),
            max(self._loaded.spec.max_batch_size, PASS_BYTES // _nbytes(rows[0])),
        )
        while True:
            try:
                parts = (rows[start : start + at_once] for start in range(0, len(rows), at_once))
                made = [row for part in parts for row in self._explain(part, at_once)]
            except Exception as error:
                if at_once == 1 or not is_out_of_memory(error):
                    raise
            else:
                self._ceilings.fitted(self._loaded.spec, at_once)
                return [row | {n: np.asarray(row[n], dtype) for n, dtype in self._dtypes.items()} for row in made]
            self._ceilings.too_large(self._loaded.spec, at_once)
            at_once //= 2

    def _explain(self, rows: Sequence[Row], at_once: int) -> list[Row]:
        request, asked = self._request, self._request.baseline
        baseline = None if asked is None else baseline_row(self._loaded.spec.signature, rows, asked)
        if request.by_gradient and not hasattr(self._loaded.model, "differentiable"):
            raise InvalidInput(
                f"{request.method} does not work here: {self._loaded.spec.ref} gives no gradients; use {ABLATION}"
            )
        found = self._as_arrays(rows)
        if found is None:
            return explain_parts(
                rows, baseline, self._fields, request, self._scores, lambda part: self._run(part, at_once)
            )
        held = None if baseline is None else _required(self._as_arrays([baseline])).inputs
        return explain_arrays(found, held, request, self._scores, at_once)

    def _as_arrays(self, rows: Sequence[Row]) -> Differentiable | None:
        """The rows as arrays of numbers; None for those that are to be taken apart as they are."""
        values = rows[0].values() if isinstance(rows[0], Mapping) else [rows[0]]
        cells = [field.cell for field in self._fields.values()] or [False]
        texts = any(isinstance(value, str | list) for value in values) and not any(cells)
        if hasattr(self._loaded.model, "differentiable") and not (texts and self._request.method == ABLATION):
            found: Differentiable = self._loaded.model.differentiable(rows)
            return found
        if not all(isinstance(value, np.ndarray | np.generic | int | float) for value in values):
            return None
        tensors = stack(rows, list(self._fields.values()) or None)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):  # gaps, which no factor covers
            return None
        names, arrays = list(tensors), [tensor.numpy() for tensor in tensors.values()]

        def outputs(*inputs: Tensor) -> dict[str, Tensor]:
            changed = [t.numpy().astype(array.dtype) for t, array in zip(inputs, arrays, strict=True)]
            made = by_input(names, changed)
            name, numbers = self._run(
                made if isinstance(rows[0], Mapping) else [row[names[0]] for row in made], len(made)
            )
            return {name: numbers}

        return Differentiable(floating(tensors), outputs, lambda made, _: by_input(names, made))

    def _run(self, rows: Sequence[Row], at_once: int) -> tuple[str, Tensor]:
        """The output's values `(rows, values)`, as they are served."""
        return self._scores.of_rows([self._loaded.output(made) for part in self._cut(rows, at_once) for made in part])

    def _cut(self, rows: Sequence[Row], at_once: int) -> Iterator[list[Any]]:
        size = min(at_once, self._loaded.spec.max_batch_size)
        for start in range(0, len(rows), size):
            yield list(self._loaded.model.predict(self._loaded.preprocess(list(rows[start : start + size]))))


def _required(found: Differentiable | None) -> Differentiable:
    assert found is not None  # noqa: S101 - a sample of the same kind as the rows
    return found


def _nbytes(row: Row) -> int:
    values = row.values() if isinstance(row, Mapping) else [row]
    return 1 + sum(value.nbytes if isinstance(value, np.ndarray) else 64 for value in values)
