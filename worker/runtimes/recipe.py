"""Serves what a training job has made: a recipe's network, with the preprocessing that was found in its training data.

Nothing is unpickled. A recipe of the operator's own must be on the list of allowed import paths, as when it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forebay.contract.errors import ModelLoadFailed
from forebay.contract.model import ModelVersion
from forebay.contract.signature import ARRAY_DTYPES, Row
from forebay.datasets.columns import Values
from forebay.worker.runtimes.speed import Forward, tuned
from forebay.worker.runtimes.tensors import module_bytes
from forebay.worker.trainer import recipes
from forebay.worker.trainer.artifact import KEPT_KEYS, read_artifact, read_keys, row_keys
from forebay.worker.trainer.labels import LABEL, PROBABILITIES, Target, in_unit, served
from forebay.worker.trainer.recipes.images import a_pixel

Prepared = tuple[tuple[Tensor, ...], int]


class Recipe:
    """Builds the recipe's network and loads its weights strictly."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed = tuple(allowed)

    def load(self, path: Path | None, device: str, spec: ModelVersion) -> RecipeModel:
        """The network in eval mode on `device`; ModelLoadFailed when the artifact is not a training job's."""
        if path is None or not path.is_dir():
            raise ModelLoadFailed(
                f"{spec.ref}: the artifact of runtime 'recipe' is a folder that a training job has made"
            )
        artifact, weights = read_artifact(path)
        recipe, loss = artifact.make(self._allowed)
        module = artifact.network(recipe)
        try:
            module.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise ModelLoadFailed(f"{spec.ref}: {error}") from error
        module = module.eval().to(device)
        made = RecipeModel(module, tuned(module, spec, device), device, recipe, loss, artifact.target)
        made.keys = read_keys(path)
        return made


class RecipeModel:
    """A trained network between its preprocessing and its labels."""

    def __init__(
        self, module: nn.Module, forward: Forward, device: str, recipe: recipes.Recipe, loss: str, target: Target
    ) -> None:
        self._module = module
        self._forward = forward
        self._device = device
        self._recipe = recipe
        self._loss = loss
        self._target = target
        self.keys = np.zeros(0, np.uint64)  # of rows it was trained on

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels in the order of the probabilities; () for numbers."""
        return self._target.classes

    def predict(self, rows: Sequence[Row]) -> list[Row]:
        return self.run(self.prepare(rows))

    def prepare(self, rows: Sequence[Row]) -> Prepared:
        """The rows encoded, as tensors on the device, and how many they are."""
        return self._encoded({name: [row[name] for row in rows] for name in self._recipe.inputs()}, len(rows))

    @torch.inference_mode()
    def run(self, prepared: Prepared) -> list[Row]:
        """The forward pass: `{"label", "probabilities"}` for each row, or its number."""
        columns = self._columns(prepared)
        if self._target.classes:
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return list(columns[self._target.name])

    @torch.inference_mode()
    def predict_columns(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One forward pass over whole columns `(batch, *shape)`."""
        return self._columns(self._encoded(dict(columns), len(next(iter(columns.values())))))

    def trained_on(self, columns: Mapping[str, Values]) -> tuple[int, int]:
        """Of how many of these rows it is known whether they were trained on, and how many were: all, or a sample of them
        where there were more than are kept.
        """  # fmt: skip
        if not len(self.keys):
            return 0, 0
        keys = row_keys(self._recipe.encode(columns))
        if len(self.keys) == KEPT_KEYS:
            keys = keys[keys <= self.keys[-1]]
        return len(keys), int(np.isin(keys, self.keys).sum())

    def sample_row(self) -> Row:
        return {name: _sample(field) for name, field in self._recipe.inputs().items()}

    def nbytes(self) -> int:
        return module_bytes(self._module)

    def _encoded(self, columns: Mapping[str, Values], count: int) -> Prepared:
        arrays = self._recipe.encode(columns)
        return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(self._device) for array in arrays), count

    def _columns(self, prepared: Prepared) -> dict[str, NDArray[Any]]:
        tensors, count = prepared
        outputs = served(self._forward(*tensors), self._loss).float()
        if not self._target.classes:
            return {self._target.name: in_unit(outputs, self._target).astype(np.float32).reshape(count)}
        labels = np.array(self._target.classes, object)[outputs.argmax(1).cpu().numpy()]
        return {LABEL: labels, PROBABILITIES: outputs.cpu().numpy()}


def _sample(field: Mapping[str, Any]) -> Any:
    kind = field["dtype"]
    if kind in ARRAY_DTYPES:
        return np.zeros([max(1, length) for length in field["shape"]], ARRAY_DTYPES[kind])
    return {"str": "a", "json": ["a"], "bytes": a_pixel()}[kind]
