"""What a recipe is, and which one a name means.

A recipe turns rows into arrays and builds the network for them; everything else - data, targets, loss, the loop, metrics,
export, serving - is done around it. Others add recipes through the entry-point group `forebay.recipes`, or name a class of
their own as `package.module:Class` when the operator allows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray
from torch import nn

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.recipes import CLASSES
from forebay.datasets.columns import Values
from forebay.datasets.reading.table import Table
from forebay.worker.allowed import find_plugin, import_allowed

GROUP = "forebay.recipes"

BUILT_IN = {
    "regressor": "forebay.worker.trainer.recipes.tabular:Regressor",
    "classifier": "forebay.worker.trainer.recipes.tabular:Classifier",
    "image-classifier": "forebay.worker.trainer.recipes.images:ImageClassifier",
    "sequence-classifier": "forebay.worker.trainer.recipes.sequences:SequenceClassifier",
}


class Recipe(Protocol):
    """One instance serves one run, or one loaded version: then `fit` is not called, `state` is what it was."""

    task: ClassVar[str]
    """`classes` or `numbers`: what the target column holds."""

    state: dict[str, Any]
    """What `fit` found in the training split: plain JSON, kept in the version."""

    def __init__(self, params: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
        """`params` as forebay.contract.requests.recipes.check_params gives them."""

    # A recipe may have `read(columns) -> (columns, bad)`: a data set's features as it holds them, which `encode` takes too, and
    # why some rows, by number, cannot be used. Those are left out.

    def fit(self, rows: Table, missing: str) -> None:
        """Looks at the training split's features and fills `state`. InvalidInput for columns that it cannot use."""

    def encode(self, columns: Mapping[str, Values]) -> tuple[NDArray[Any], ...]:
        """Columns of any rows to arrays `(rows, ...)`, each row independent of the others: what the network takes."""

    def build(self, outputs: int) -> nn.Module:
        """The network, from `params` and `state` alone: the arrays as tensors to `(rows, outputs)`.

        For classes these are logits (one for two classes with the loss `bce`), for numbers one number.
        """

    def inputs(self) -> dict[str, Any]:
        """The inputs of the signature, by the names that `encode` finds its columns under when serving."""


def get_recipe(name: str, allowed: Sequence[str] = ()) -> type[Recipe]:
    """The class of the recipe `name`; InvalidInput listing the known ones, ModelRefused for a path that is not allowed."""
    found = import_allowed(name, allowed) if ":" in name else find_plugin(GROUP, name, BUILT_IN)
    if not all(hasattr(found, part) for part in ("task", "fit", "encode", "build", "inputs")):
        raise InvalidInput(f"{name!r} is not a recipe: it needs task, fit, encode, build and inputs")
    made: type[Recipe] = found
    return made


def outputs_of(recipe: type[Recipe], classes: Sequence[str], params: Mapping[str, Any]) -> int:
    """How many numbers the network gives for a row."""
    if recipe.task != CLASSES or loss_of(recipe, params) == "bce":
        return 1
    return len(classes)


def loss_of(recipe: type[Recipe], params: Mapping[str, Any]) -> str:
    chosen = str(params.get("loss", "auto"))
    return chosen if chosen != "auto" else "cross-entropy" if recipe.task == CLASSES else "mse"
