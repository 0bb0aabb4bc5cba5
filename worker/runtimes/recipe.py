"""Serves what a training job has made: a recipe's network, or what a library has fitted as an ONNX graph, with the preprocessing
that was found in its training data.

Nothing is unpickled. A recipe of the operator's own must be on the list of allowed import paths, as when it was trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forebay.contract.errors import InvalidInput, ModelLoadFailed
from forebay.contract.model import ModelVersion
from forebay.contract.onnx.judge import read_onnx
from forebay.contract.signature import ARRAY_DTYPES, Row
from forebay.datasets.columns import Values
from forebay.export.estimators import INPUT, PREDICTION
from forebay.worker.runtimes.onnx_session import open_session
from forebay.worker.runtimes.speed import Forward, tuned
from forebay.worker.runtimes.tensors import Differentiable, by_input, module_bytes
from forebay.worker.trainer import recipes
from forebay.worker.trainer.artifact import (
    GRAPH_FILE,
    KEPT_KEYS,
    Artifact,
    read_artifact,
    read_keys,
    read_weights,
    row_keys,
)
from forebay.worker.trainer.labels import LABEL, PROBABILITIES, Target, in_unit, served
from forebay.worker.trainer.recipes.images import a_pixel

Prepared = tuple[Any, int]


class Recipe:
    """Builds the recipe's network and loads its weights strictly, or opens its graph."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed = tuple(allowed)

    def load(self, path: Path | None, device: str, spec: ModelVersion) -> RecipeModel:
        """The network in eval mode on `device`; ModelLoadFailed when the artifact is not a training job's."""
        if path is None or not path.is_dir():
            raise ModelLoadFailed(
                f"{spec.ref}: the artifact of runtime {spec.runtime!r} is a folder that a training job has made"
            )
        artifact = read_artifact(path)
        recipe, loss = artifact.make(self._allowed)
        made: RecipeModel
        if recipes.is_fitted(recipe):
            session = open_session(read_onnx(path / GRAPH_FILE), device, spec)
            made = GraphModel(recipe, artifact.target, session, (path / GRAPH_FILE).stat().st_size)
        else:
            module = load_network(artifact, cast(recipes.Recipe, recipe), path, spec).to(device)
            made = NetworkModel(recipe, artifact.target, module, tuned(module, spec, device), loss, device)
        made.keys = read_keys(path)
        return made


def load_network(artifact: Artifact, recipe: recipes.Recipe, folder: Path, spec: ModelVersion) -> nn.Module:
    """What was trained, in eval mode."""
    module: nn.Module = artifact.network(recipe)
    try:
        module.load_state_dict(read_weights(folder), strict=True)
    except RuntimeError as error:
        raise ModelLoadFailed(f"{spec.ref}: {error}") from error
    return module.eval()


class RecipeModel(ABC):
    """What was trained, between its preprocessing and its labels."""

    def __init__(self, recipe: recipes.AnyRecipe, target: Target) -> None:
        self._recipe, self._target = recipe, target
        self.keys = np.zeros(0, np.uint64)  # of rows it was trained on

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels in the order of the probabilities; () for numbers."""
        return self._target.classes

    def predict(self, rows: Sequence[Row]) -> list[Row]:
        return self.run(self.prepare(rows))

    def prepare(self, rows: Sequence[Row]) -> Prepared:
        """The rows encoded, on the device, and how many they are."""
        return self._encoded({name: [row[name] for row in rows] for name in self._recipe.inputs()}, len(rows))

    def run(self, prepared: Prepared) -> list[Row]:
        """The forward pass: `{"label", "probabilities"}` for each row, or its number."""
        columns = self._columns(prepared)
        if self._target.classes:
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return list(columns[self._target.name])

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

    @abstractmethod
    def nbytes(self) -> int: ...

    @abstractmethod
    def _on_device(self, arrays: Sequence[NDArray[Any]]) -> Any:
        """Encoded rows as `_served` takes them."""

    @abstractmethod
    def _served(self, inputs: Any) -> NDArray[Any]:
        """Probabilities `(rows, classes)`, or scaled numbers `(rows,)`."""

    def _encoded(self, columns: Mapping[str, Values], count: int) -> Prepared:
        return self._on_device([np.ascontiguousarray(array) for array in self._recipe.encode(columns)]), count

    def _columns(self, prepared: Prepared) -> dict[str, NDArray[Any]]:
        inputs, count = prepared
        outputs = self._served(inputs)
        if not self._target.classes:
            return {self._target.name: in_unit(outputs, self._target).astype(np.float32).reshape(count)}
        if np.isnan(outputs).any():  # the engine finds the rows
            raise InvalidInput(
                "the model gives NaN for it: its numbers are too far from those that the model was trained on"
            )
        return {LABEL: np.array(self._target.classes, object)[outputs.argmax(1)], PROBABILITIES: outputs}


class NetworkModel(RecipeModel):
    """A trained network."""

    def __init__(
        self, recipe: recipes.AnyRecipe, target: Target, module: nn.Module, forward: Forward, loss: str, device: str
    ) -> None:
        super().__init__(recipe, target)
        self._module, self._forward, self._loss, self._device = module, forward, loss, device

    def differentiable(self, rows: Sequence[Row]) -> Differentiable:
        """These rows, encoded, as tensors by which the outputs have gradients; of a text those of its tokens' embeddings.
        InvalidInput for a recipe that does not say what its numbers stand for.
        """  # fmt: skip
        attributed = getattr(self._recipe, "attributed", None)
        if attributed is None:
            raise InvalidInput("this recipe has no attributed(), which says what its numbers stand for")
        columns = {name: [row[name] for row in rows] for name in self._recipe.inputs()}
        first, *fixed = self._on_device([np.ascontiguousarray(array) for array in self._recipe.encode(columns)])
        if not first.is_floating_point():
            first = self._module.embedding(first).detach()  # type: ignore[operator]

        def told(arrays: Sequence[NDArray[Any]], slopes: bool) -> list[Row]:
            made = attributed(arrays[0], columns, slopes)
            return by_input(list(made), list(made.values()))

        recurrent = any(isinstance(part, nn.RNNBase) for part in self._module.modules())
        groups: tuple[int, ...] | None = getattr(self._recipe, "groups", tuple)() or None
        return Differentiable((first,), self._outputs, told, tuple(fixed), groups, recurrent)

    def _outputs(self, *inputs: Tensor) -> dict[str, Tensor]:
        """What is served but for labels, with gradients."""
        outputs = served(self._forward(*inputs), self._loss)
        if self._target.classes:
            return {PROBABILITIES: outputs}
        return {self._target.name: outputs * self._target.deviation + self._target.mean}

    def nbytes(self) -> int:
        return module_bytes(self._module)

    def _on_device(self, arrays: Sequence[NDArray[Any]]) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(array).to(self._device) for array in arrays)

    @torch.inference_mode()
    def _served(self, inputs: Any) -> NDArray[Any]:
        made: NDArray[Any] = served(self._forward(*inputs), self._loss).float().cpu().numpy()
        return made


class GraphModel(RecipeModel):
    """What a library has fitted, run by onnxruntime."""

    def __init__(self, recipe: recipes.AnyRecipe, target: Target, session: Any, nbytes: int) -> None:
        super().__init__(recipe, target)
        self._session, self._nbytes = session, nbytes

    def nbytes(self) -> int:
        return self._nbytes

    def _on_device(self, arrays: Sequence[NDArray[Any]]) -> Any:
        [rows] = arrays
        return rows

    def _served(self, inputs: Any) -> NDArray[Any]:
        made: NDArray[Any] = self._session.run([PROBABILITIES if self.classes else PREDICTION], {INPUT: inputs})[0]
        return made


def _sample(field: Mapping[str, Any]) -> Any:
    kind = field["dtype"]
    if kind in ARRAY_DTYPES:
        return np.zeros([max(1, length) for length in field["shape"]], ARRAY_DTYPES[kind])
    return {"str": "a", "json": ["a"], "bytes": a_pixel()}[kind]
