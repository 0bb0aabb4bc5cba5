"""From a request to what a run needs before its first epoch: data read and encoded, the recipe fitted, all checks done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from forebay.worker.trainer.recipes import Recipe, get_recipe, loss_of
from forebay.worker.trainer.scoring import Scorer

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

    recipe: Recipe
    artifact: Artifact
    inputs: ReferenceBuilder

    def network(self) -> nn.Module:
        return self.artifact.network(self.recipe)

    def score(self, outputs: Tensor, rows: Rows) -> tuple[dict[str, float], list[list[int]] | None]:
        target = self.artifact.target
        scorer = Scorer(target.classes)
        if target.classes:
            labels = [target.classes[i] for i in rows.targets.tolist()]
            scorer.add({PROBABILITIES: outputs.numpy()}, labels)
        else:
            predicted, truth = (in_unit(numbers, target) for numbers in (outputs, rows.targets))
            scorer.add(predicted, truth)
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
            labels = [target.classes[i] for i in held.argmax(1).tolist()]
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
    params, metric = check_params(request.recipe, request.params), check_metric(request.recipe, request.metric)
    recipe = kind(params)
    data = load_data(request, recipe, bool(params["normalize"]), rank.processes_here(request.nodes))
    _check(kind, params, data)
    recipe.fit(data.parts[TRAIN].features, request.missing)
    artifact = Artifact(request.recipe, params, recipe.state, data.summary.features, data.target)
    balanced = params["class_weights"] == "balanced"
    weights = _class_weights(data) if balanced else None
    rows = {name: _rows(recipe, part, data, weights if name == TRAIN else None) for name, part in data.parts.items()}
    loss, at_once = loss_of(kind, params), request.max_batch_size
    inputs = _watched(recipe, data.parts[TRAIN].features)
    return PreparedTable(request, params, metric, data.summary, rows, loss, at_once, recipe, artifact, inputs)


def _watched(recipe: Recipe, features: Table) -> ReferenceBuilder:
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


def _check(kind: type[Recipe], params: Mapping[str, Any], data: Data) -> None:
    loss, classes = loss_of(kind, params), data.target.classes
    if loss == "bce" and len(classes) != 2:
        raise InvalidInput(f"loss bce is for two classes; the target has {len(classes)}: use cross-entropy")
    if params["class_weights"] != "none" and kind.task != CLASSES:
        raise InvalidInput("class_weights is for classes; this recipe learns numbers")
    if params["early_stopping_epochs"] and not len(data.parts[VALIDATION]):
        raise InvalidInput(
            "early_stopping_epochs needs a validation split; give it a share, or leave early_stopping_epochs 0"
        )


def _rows(recipe: Recipe, part: SplitData, data: Data, class_weights: torch.Tensor | None) -> Rows:
    if not len(part):
        empty = torch.zeros(0)
        return Rows((), empty, empty)
    inputs = tuple(torch.from_numpy(array) for array in recipe.encode(part.features.columns))
    if data.target.classes:
        targets = torch.from_numpy(part.targets)
        weights = torch.ones(len(part)) if class_weights is None else class_weights[targets]
        return Rows(inputs, targets, weights)
    scaled = (part.targets - data.target.mean) / data.target.deviation
    return Rows(inputs, torch.from_numpy(scaled).float(), torch.ones(len(part)))


def _class_weights(data: Data) -> torch.Tensor:
    """rows / (classes · rows of the class), as scikit-learn balances; a class without rows weighs nothing."""
    counts = torch.bincount(torch.from_numpy(data.parts[TRAIN].targets), minlength=len(data.target.classes)).float()
    return torch.where(counts > 0, counts.sum() / (len(counts) * counts.clamp(min=1)), 0.0)
