"""What a recipe is, and which one a name means.

A recipe turns rows into arrays and builds the network for them; everything else - data, targets, loss, the loop, metrics,
export, serving - is done around it. Others add recipes through the entry-point group `forebay.recipes`, or name a class of
their own as `package.module:Class` when the operator allows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
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
    "trees": "forebay.worker.trainer.recipes.learners:Trees",
    "svm": "forebay.worker.trainer.recipes.learners:Svm",
}


class Recipe(Protocol):
    """One instance serves one run, or one loaded version: then `fit` is not called, `state` is what it was."""

    task: ClassVar[str]
    """`classes` or `numbers`: what the target column holds."""

    state: dict[str, Any]
    """What `fit` found in the training split: plain JSON, kept in the version."""

    def __init__(self, params: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
        """`params` as forebay.contract.requests.recipes.check_params gives them."""

    # For explanations by gradients a recipe has `attributed(numbers, columns, slopes) -> {input name: for each row}`: what the
    # numbers of the first array that `encode` makes of the columns stand for; `slopes` are gradients, else they are parts of a
    # sum. With `groups()` it says of each number of a vector which feature it is part of.
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


class FittedRecipe(Protocol):
    """A recipe whose model a library fits, in the place of a network and its loop. It has `state`, `fit`, `encode` (one array, of
    float32) and `inputs` as a Recipe has; its `task` may follow from the parameters.
    """  # fmt: skip

    task: str
    state: dict[str, Any]
    steps: int
    """That are planned."""
    centers: bool
    """Whether it learns numbers about their mean: ONNX adds up in float32, which a large offset leaves few digits."""

    def __init__(self, params: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None: ...

    def fit(self, rows: Table, missing: str) -> None: ...

    def encode(self, columns: Mapping[str, Values]) -> tuple[NDArray[Any], ...]: ...

    def inputs(self) -> dict[str, Any]: ...

    def blocks(self) -> Mapping[str, slice]:
        """Where each column lies in an encoded row."""

    def learn(
        self, x: NDArray[np.float32], y: NDArray[Any], weights: NDArray[np.float32] | None, seed: int
    ) -> Iterator[int]:
        """Fits to encoded rows, and their numbers of classes or numbers; gives now and then how many steps are done, where a run
        may be stopped, and at the end. InvalidInput for rows that it cannot be fitted to.
        """  # fmt: skip

    def go_back(self, steps: int) -> None:
        """To what the model was after so many steps that `learn` gave."""

    def predict(self, x: NDArray[np.float32], classes: int) -> NDArray[Any]:
        """The library's own: probabilities `(rows, classes)`, or numbers `(rows,)`."""

    def export(self, classes: int) -> bytes:
        """The same as ONNX, as forebay.export.estimators.to_onnx has it."""


AnyRecipe = Recipe | FittedRecipe


def is_fitted(recipe: Any) -> bool:
    """Whether a recipe, or its class, is a FittedRecipe."""
    return hasattr(recipe, "learn")


def get_recipe(name: str, allowed: Sequence[str] = ()) -> type[AnyRecipe]:
    """The class of the recipe `name`; InvalidInput listing the known ones, ModelRefused for a path that is not allowed."""
    found = import_allowed(name, allowed) if ":" in name else find_plugin(GROUP, name, BUILT_IN)
    needed = ("learn", "predict", "export") if is_fitted(found) else ("task", "build")
    if not all(hasattr(found, part) for part in (*needed, "fit", "encode", "inputs")):
        raise InvalidInput(f"{name!r} is not a recipe: it needs {', '.join(needed)}, fit, encode and inputs")
    made: type[AnyRecipe] = found
    return made


def outputs_of(recipe: type[AnyRecipe], classes: Sequence[str], params: Mapping[str, Any]) -> int:
    """How many numbers the network gives for a row."""
    if recipe.task != CLASSES or loss_of(recipe, params) == "bce":
        return 1
    return len(classes)


def loss_of(recipe: type[AnyRecipe], params: Mapping[str, Any]) -> str:
    chosen = str(params.get("loss", "auto"))
    return chosen if chosen != "auto" else "cross-entropy" if recipe.task == CLASSES else "mse"
