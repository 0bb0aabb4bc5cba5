"""What a training job can be told: the parameters of the training loop and of each recipe, with their types, limits and defaults.

Client, command and trainer check by the same Structs, before anything is queued. Knows no torch and no recipe's code; parameters
of recipes of third parties, which only those know, pass through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from forebay.contract.errors import InvalidInput
from forebay.contract.references import ModelRef, shown
from forebay.contract.requests.fields import Field, check, fields_of
from forebay.contract.requests.learners import Categorical, ClassWeights, SvmParams, TreesParams

CLASSES, NUMBERS, TEXT = "classes", "numbers", "text"  # what a recipe learns to tell
FINETUNE = "finetune-text"
_METRICS = {
    CLASSES: ("loss", "accuracy", "precision", "recall", "f1", "auroc"),
    NUMBERS: ("loss", "mae", "rmse", "r2"),
    TEXT: ("loss", "perplexity"),
}
_JUDGED_BY = {CLASSES: "accuracy", NUMBERS: "r2", TEXT: "perplexity"}  # when nothing is said

Width = Annotated[int, Meta(ge=1, le=65_536)]
Epochs = Annotated[int, Meta(ge=1, le=1_000_000, description="how often the training split is gone through")]
LearningRate = Annotated[float, Meta(ge=1e-12, le=1e3, description="learning rate")]


class LoopParams(Struct, frozen=True, kw_only=True):
    """The parameters of the training loop, which every recipe has."""

    epochs: Epochs = 20
    batch_size: Annotated[
        int, Meta(ge=1, le=10_000_000, description="rows of one step, over all processes; `gd` takes all rows")
    ] = 32
    optimizer: Annotated[
        Literal["gd", "sgd", "adam", "adamw"], Meta(description="`gd` is gradient descent with all rows in each step")
    ] = "adam"
    lr: LearningRate = 0.001
    momentum: Annotated[float, Meta(ge=0, le=0.9999, description="of `gd` and `sgd`")] = 0.0
    weight_decay: Annotated[float, Meta(ge=0, le=1e3, description="pulls weights towards zero")] = 0.0
    schedule: Annotated[
        Literal["constant", "cosine", "step"],
        Meta(description="of the learning rate over the epochs: `cosine` to zero, `step` by 0.1 at each third"),
    ] = "constant"
    loss: Annotated[
        Literal["auto", "mse", "cross-entropy", "bce"],
        Meta(description="what is lowered; `auto` is the recipe's first, `bce` is for two classes"),
    ] = "auto"
    early_stopping_epochs: Annotated[
        int, Meta(ge=0, le=1_000_000, description="stops after so many epochs without a better metric; 0 never")
    ] = 0
    min_delta: Annotated[
        float, Meta(ge=0, le=1e9, description="how much better counts as better for `early_stopping_epochs`")
    ] = 0.0
    precision: Annotated[Literal["32", "bf16-mixed"], Meta(description="of the arithmetic")] = "32"
    warmup_steps: Annotated[
        int, Meta(ge=0, le=1_000_000_000, description="over which the learning rate rises to `lr` or its schedule")
    ] = 0
    accumulate: Annotated[int, Meta(ge=1, le=1_000_000, description="batches whose gradients make one step")] = 1
    clip: Annotated[float, Meta(ge=0, le=1e9, description="longest gradient, by its norm; 0 any")] = 0.0
    class_weights: ClassWeights = "none"
    normalize: Annotated[
        bool, Meta(description="numbers to mean 0 and deviation 1, as found in the training split")
    ] = True


Dropout = Annotated[float, Meta(ge=0, le=0.95, description="share of hidden values left out while training")]
HiddenLayers = Annotated[tuple[Width, ...], Meta(description="widths of hidden layers; none is a linear model")]


class TabularParams(Struct, frozen=True, kw_only=True):
    """Of a multilayer perceptron on the columns of a table."""

    hidden: HiddenLayers = ()
    dropout: Dropout = 0.0
    categorical: Categorical = ()


class ClassifierParams(TabularParams, frozen=True, kw_only=True):
    """The same with a hidden layer."""

    hidden: HiddenLayers = (64,)


class ImageParams(Struct, frozen=True, kw_only=True):
    """Of a convolutional network on images."""

    channels: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=4096)], ...],
        Meta(description="channels of each convolution; each halves the image"),
    ] = (32, 64)
    hidden: Annotated[tuple[Width, ...], Meta(description="widths of hidden layers behind them")] = (128,)
    dropout: Dropout = 0.0
    size: Annotated[int, Meta(ge=4, le=1024, description="side in pixels that images of a folder are brought to")] = 32
    orientation: Annotated[bool, Meta(description="turns image files as their orientation tags say")] = True
    shape: Annotated[
        tuple[Width, ...],
        Meta(description="of an image given as a flat list, such as 28,28; none: square and gray"),
    ] = ()


class SequenceParams(Struct, frozen=True, kw_only=True):
    """Of a recurrent network on texts or lists of numbers."""

    cell: Annotated[Literal["gru", "lstm"], Meta(description="kind of recurrent network")] = "gru"
    hidden: Annotated[Width, Meta(description="width of its state")] = 64
    layers: Annotated[int, Meta(ge=1, le=64, description="how many lie on one another")] = 1
    dropout: Dropout = 0.0
    tokens: Annotated[Literal["words", "characters"], Meta(description="what a text is cut into")] = "words"
    embedding: Annotated[Width, Meta(description="width of a token's vector")] = 32
    vocabulary: Annotated[
        int, Meta(ge=1, le=10_000_000, description="most tokens that are told apart; the rarer ones are one")
    ] = 10_000
    max_length: Annotated[
        int, Meta(ge=1, le=1_000_000, description="what is longer is cut off behind this many elements")
    ] = 256


class FinetuneParams(Struct, frozen=True, kw_only=True):
    """Of a low-rank adapter (LoRA) on a language model."""

    base: Annotated[
        str, Meta(title="a model, such as smollm@champion", description="the registered language model that is adapted")
    ] = ""
    rank: Annotated[int, Meta(ge=1, le=4096, description="of the product that is learned for each layer")] = 16
    alpha: Annotated[float, Meta(gt=0, le=1e6, description="the product is scaled by alpha / rank")] = 32.0
    dropout: Dropout = 0.0
    targets: Annotated[
        tuple[str, ...],
        Meta(title="names such as q_proj,v_proj", description="layers that are adapted; none: all linear ones but the head"),
    ] = ()  # fmt: skip
    max_length: Annotated[
        int, Meta(ge=0, le=10_000_000, description="examples of more tokens are left out; 0: the model's context")
    ] = 0
    packing: Annotated[
        bool,
        Meta(description="short examples follow one another in a sequence, without seeing one another: no padding"),
    ] = False
    epochs: Epochs = 3
    batch_size: Annotated[int, Meta(ge=1, le=10_000_000, description="examples of one step, over all processes")] = 8
    lr: LearningRate = 2e-4


@dataclass(frozen=True, slots=True)
class RecipeInfo:
    """A recipe of Forebay's own: what it may tell (CLASSES, NUMBERS or TEXT; the first unless its parameter `task` says so), its
    losses, its parameters. One that is `fitted` by a library has no training loop: none of its parameters, no checkpoints, one
    process.
    """  # fmt: skip

    name: str
    help: str
    tasks: tuple[str, ...]
    losses: tuple[str, ...]
    params: type[Struct]
    fitted: bool = False


_CLASS_LOSSES = ("cross-entropy", "bce")
RECIPES: Mapping[str, RecipeInfo] = {
    recipe.name: recipe
    for recipe in (
        RecipeInfo(
            "regressor", "a number from the columns of a table: linear, or a multilayer perceptron", (NUMBERS,), ("mse",),
            TabularParams,
        ),
        RecipeInfo(
            "classifier", "a class from the columns of a table, by a multilayer perceptron", (CLASSES,), _CLASS_LOSSES,
            ClassifierParams,
        ),
        RecipeInfo(
            "image-classifier", "a class from an image, by a convolutional network", (CLASSES,), _CLASS_LOSSES, ImageParams,
        ),
        RecipeInfo(
            "sequence-classifier", "a class from a text or a list of numbers, by a recurrent network", (CLASSES,),
            _CLASS_LOSSES, SequenceParams,
        ),
        RecipeInfo(
            "trees", "a class or a number from the columns of a table, by gradient boosting or a random forest",
            (CLASSES, NUMBERS), (), TreesParams, fitted=True,
        ),
        RecipeInfo(
            "svm", "a class or a number from the columns of a table, by a support vector machine", (CLASSES, NUMBERS), (),
            SvmParams, fitted=True,
        ),
        RecipeInfo(
            FINETUNE, "a text from a prompt, or an answer in a conversation, by an adapter (LoRA) on a language model", (TEXT,),
            ("cross-entropy",), FinetuneParams,
        ),
    )
}  # fmt: skip


def parameters(recipe: str) -> dict[str, Field]:
    """Those of the loop, but for a fitted recipe, and those of the recipe where it is one of RECIPES."""
    return {name: field for kind in _kinds(recipe) for name, field in fields_of(kind).items()}


def check_params(recipe: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of the loop and of the recipe with its value: as given, of its type, or its default.

    Values may be text, as a command line gives them. InvalidInput names the value and what may be given. Of a recipe that is not
    one of RECIPES, what the loop does not know passes through as it is.
    """
    known, there = RECIPES.get(recipe), parameters(recipe)
    unknown = {name: value for name, value in params.items() if name not in there}
    if known is not None and unknown:
        raise InvalidInput(
            f"recipe {recipe!r} has no parameter {shown(next(iter(unknown)))}; there are {', '.join(there)}"
        )
    made = {name: value for kind in _kinds(recipe) for name, value in _checked(kind, params).items()}
    if known is not None and "loss" in made and made["loss"] not in ("auto", *known.losses):
        raise InvalidInput(f"recipe {recipe!r} lowers {' or '.join(known.losses)}, not {made['loss']!r}")
    return made | unknown


def base_of(recipe: str, params: Mapping[str, Any]) -> ModelRef | None:
    """The version that a run adapts, if it adapts one."""
    return ModelRef.parse(params["base"]) if recipe == FINETUNE else None


def default_metric(recipe: str, params: Mapping[str, Any]) -> str:
    """What the recipe's best state and an alias are judged by when nothing is said: `loss` for one of a third party."""
    return _JUDGED_BY[_task(RECIPES[recipe], params)] if recipe in RECIPES else "loss"


def check_metric(recipe: str, metric: str | None, params: Mapping[str, Any]) -> str:
    """The metric, the recipe's own for None; InvalidInput for one that its task does not have."""
    known = RECIPES.get(recipe)
    able = (*_METRICS[CLASSES], *_METRICS[NUMBERS][1:]) if known is None else metrics_of(_task(known, params))
    if metric is not None and metric not in able:
        raise InvalidInput(f"recipe {recipe!r} cannot be judged by {shown(metric)}; choose one of {', '.join(able)}")
    return metric or default_metric(recipe, params)


def metrics_of(task: str) -> tuple[str, ...]:
    """The metrics that are measured for CLASSES, NUMBERS or TEXT while it is trained."""
    return _METRICS[task]


def _kinds(recipe: str) -> list[type[Struct]]:
    """The Structs of a recipe's parameters; a later one's defaults count."""
    known = RECIPES.get(recipe)
    loop = [] if known is not None and known.fitted else [LoopParams]
    return [*loop, *([known.params] if known is not None else [])]


def _task(recipe: RecipeInfo, params: Mapping[str, Any]) -> str:
    return str(params.get("task", recipe.tasks[0]))


def _checked(kind: type[Struct], params: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: params[name] for name in fields_of(kind) if name in params}
    return msgspec.structs.asdict(check(given, kind, text=True))
