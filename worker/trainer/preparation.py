"""From a request to what a run needs before its first epoch: data read and encoded, the recipe fitted, all checks done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from forebay.contract.cells import category_cell
from forebay.contract.drift.sketch import MAX_ROWS, Reference, ReferenceBuilder
from forebay.contract.errors import InvalidInput
from forebay.contract.requests.recipes import CLASSES, check_metric, check_params
from forebay.contract.requests.training import TRAIN, VALIDATION, DataSummary, TrainRequest
from forebay.contract.signature import Signature
from forebay.datasets.reading.table import Table
from forebay.worker.trainer.artifact import RUNTIME, Artifact, outputs, write_artifact
from forebay.worker.trainer.data import Data, SplitData, load_data
from forebay.worker.trainer.labels import LABEL, PROBABILITIES, in_unit
from forebay.worker.trainer.loading import Rows
from forebay.worker.trainer.rank import Rank
from forebay.worker.trainer.recipes import AnyRecipe, Recipe, get_recipe, is_fitted, loss_of
from forebay.worker.trainer.scoring import Scorer

MAX_CONFUSION_CLASSES = 100  # up to which the confusion matrix is kept
OWN_LOSS = "own"  # a network with it gives the losses of its rows


@dataclass(slots=True)
class Prepared(ABC):
    """What a run needs beside the loop. Of the data it holds only what is trained on, so that it is in memory once."""

    request: TrainRequest
    params: Mapping[str, Any]
    metric: str
    summary: DataSummary
    rows: Mapping[str, Rows]
    loss: str
    at_once: int  # rows of a batch that is only measured

    @abstractmethod
    def network(self) -> nn.Module:
        """The network, untrained: a batch's inputs to outputs, of which `loss` makes the loss of each row."""

    @abstractmethod
    def score(self, outputs: Tensor, rows: Rows) -> tuple[dict[str, float], list[list[int]] | None]:
        """Metrics and confusion of the served outputs of all of a split's rows."""

    @abstractmethod
    def write(self, folder: Path, net: nn.Module) -> Mapping[str, Any]:
        """Write the artifact; runtime, inputs, outputs and options of the version, as `Trained` has them."""

    def reference(self, held: Tensor | None) -> Reference | None:  # noqa: ARG002 - a recipe of text has none
        """What later rows are held against: the inputs of the training split, and the served outputs of rows that were `held`
        out, which the network does not know by heart; None when the inputs cannot be watched.
        """  # fmt: skip
        return None

    def unit(self, loss: float) -> float:
        """A training loss in the unit of what is learned."""
        return loss


@dataclass(slots=True)
class PreparedTable(Prepared):
    """A run of a recipe on columns of a table."""

    recipe: AnyRecipe
    artifact: Artifact
    inputs: ReferenceBuilder

    def network(self) -> nn.Module:
        return self.artifact.network(cast(Recipe, self.recipe))

    def score(self, outputs: Tensor, rows: Rows) -> tuple[dict[str, float], list[list[int]] | None]:
        target = self.artifact.target
        scorer = Scorer(target.classes)
        if target.classes:
            labels = [target.classes[i] for i in rows.targets.tolist()]
            scorer.add({PROBABILITIES: outputs.numpy()}, labels)
        else:
            predicted, truth = (in_unit(numbers, target) for numbers in (outputs, rows.targets))
            scorer.add(predicted.astype(np.float32), truth)  # as it is served
        return scorer.metrics(), scorer.confusion()

    def write(self, folder: Path, net: nn.Module) -> Mapping[str, Any]:
        write_artifact(
            folder, self.artifact, net.state_dict(), [t for t in self.rows[TRAIN].inputs if isinstance(t, Tensor)]
        )
        made = outputs(self.recipe.task, self.artifact.target)
        return {"runtime": RUNTIME, "inputs": self.recipe.inputs(), "outputs": made}

    def reference(self, held: Tensor | None) -> Reference:
        target = self.artifact.target
        made = ReferenceBuilder("output", Signature.parse(None, outputs(self.recipe.task, target)).outputs)
        if held is not None and target.classes:
            labels = [target.classes[i] for i in held.numpy().argmax(1)]
            made.add({LABEL: labels, PROBABILITIES: held.numpy()})
        elif held is not None:
            made.add({target.name: in_unit(held, target)})
        columns = (*self.inputs.columns(), *made.columns())
        return Reference(columns, "its training", (*self.inputs.unwatched, *made.unwatched))

    def unit(self, loss: float) -> float:
        """The target may have been scaled."""
        return loss * self.artifact.target.deviation**2 if self.loss == "mse" else loss


def prepare_table(request: TrainRequest, rank: Rank, allowed: Sequence[str]) -> PreparedTable:
    """InvalidInput, or another ForebayError, for a request or data that cannot be trained on."""
    kind = get_recipe(request.recipe, allowed)
    params = check_params(request.recipe, request.params)
    metric = check_metric(request.recipe, request.metric, params)
    recipe, fitted = kind(params), is_fitted(kind)
    data = load_data(request, recipe, bool(params.get("normalize")), rank.processes_here(request.nodes))
    loss = "" if fitted else loss_of(kind, params)
    _check(recipe.task, loss, params, data)
    recipe.fit(data.parts[TRAIN].features, request.missing)
    if getattr(recipe, "centers", False) and not data.target.classes and not params.get("normalize"):
        data.target = replace(data.target, mean=float(data.parts[TRAIN].targets.mean()))
    artifact = Artifact(request.recipe, params, recipe.state, data.summary.features, data.target)
    balanced = params.get("class_weights") == "balanced"
    weights = _class_weights(data) if balanced else None
    rows = {name: _rows(recipe, part, data, weights if name == TRAIN else None) for name, part in data.parts.items()}
    inputs, at_once = _watched(recipe, data.parts[TRAIN].features), request.max_batch_size
    return PreparedTable(request, params, metric, data.summary, rows, loss, at_once, recipe, artifact, inputs)


def _watched(recipe: AnyRecipe, features: Table) -> ReferenceBuilder:
    """The training split's features as the version's inputs, every so-manieth row of many. Image files are decoded already."""
    fields = Signature.parse(recipe.inputs()).inputs or ()
    builder = ReferenceBuilder("input", fields)
    table = features.take(np.arange(0, len(features), -(-len(features) // MAX_ROWS)))
    only = (
        next(iter(table.columns.values())) if len(fields) == len(table.columns) == 1 else None
    )  # it may have another name
    for field in fields:
        values = table.columns.get(field.name, only)
        if values is None or field.dtype in ("bytes", "json"):
            continue
        if field.cell and field.dtype == "str":
            values = [category_cell(value, True, field.name) for value in values]
        try:
            builder.add({field.name: values})
        except (TypeError, ValueError, OverflowError) as error:
            builder.unwatched.append(f"input {field.name}: {error}")
    return builder


def kept_confusion(confusion: list[list[int]] | None) -> list[list[int]] | None:
    return confusion if confusion is None or len(confusion) <= MAX_CONFUSION_CLASSES else None


def _check(task: str, loss: str, params: Mapping[str, Any], data: Data) -> None:
    classes = data.target.classes
    if loss == "bce" and len(classes) != 2:
        raise InvalidInput(f"loss bce is for two classes; the target has {len(classes)}: use cross-entropy")
    if params.get("class_weights", "none") != "none" and task != CLASSES:
        raise InvalidInput("class_weights is for classes; this recipe learns numbers")
    for name in ("early_stopping_epochs", "early_stopping_rounds"):
        if params.get(name) and not len(data.parts[VALIDATION]):
            raise InvalidInput(f"{name} needs a validation split; give it a share, or leave {name} 0")


def _rows(recipe: AnyRecipe, part: SplitData, data: Data, class_weights: torch.Tensor | None) -> Rows:
    if not len(part):
        empty = torch.zeros(0)
        return Rows((), empty, empty)
    inputs = tuple(torch.from_numpy(array) for array in recipe.encode(part.features.columns))
    if data.target.classes:
        targets = torch.from_numpy(part.targets)
        weights = torch.ones(len(part)) if class_weights is None else class_weights[targets]
        return Rows(inputs, targets, weights)
    scaled = torch.from_numpy((part.targets - data.target.mean) / data.target.deviation)
    return Rows(inputs, scaled if is_fitted(recipe) else scaled.float(), torch.ones(len(part)))


def _class_weights(data: Data) -> torch.Tensor:
    """rows / (classes · rows of the class), as scikit-learn balances; a class without rows weighs nothing."""
    counts = torch.bincount(torch.from_numpy(data.parts[TRAIN].targets), minlength=len(data.target.classes)).float()
    return torch.where(counts > 0, counts.sum() / (len(counts) * counts.clamp(min=1)), 0.0)
