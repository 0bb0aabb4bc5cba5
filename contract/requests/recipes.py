"""What a training job can be told: the parameters of the loop and of each recipe, with their kinds, defaults and ranges.

Client, command and trainer check by the same table, before anything is queued. Knows no torch and no recipe's code: recipes
of third parties have parameters that only they know, which pass through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.training import METRICS

CLASSES, NUMBERS = "classes", "numbers"  # what a recipe learns to tell

INT, FLOAT, BOOL, CHOICE, INTS, NAMES = "int", "float", "bool", "choice", "ints", "names"
_KINDS = {
    INT: "a whole number", FLOAT: "a number", BOOL: "true or false", CHOICE: "a word", INTS: "whole numbers such as 64,32",
    NAMES: "names such as city,color",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter. `low` and `high` bound each number of it, both included; `choices` are all there are."""

    name: str
    kind: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> Any:
        """`value` as the parameter's kind, also from text as a command line gives it; InvalidInput says what would do."""
        made = _READ[self.kind](value)
        if made is None or not self._holds(made):
            raise InvalidInput(f"parameter {self.name!r}: expected {self.expected}, got {shown(value)}")
        return made

    @property
    def expected(self) -> str:
        """What may be given, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.low is None:
            return _KINDS[self.kind]
        ends = f"from {_number(self.low)}" + ("" if self.high is None else f" to {_number(self.high)}")
        return f"{_KINDS[self.kind]}, {'each ' if self.kind == INTS else ''}{ends}"

    def _holds(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        numbers = value if self.kind == INTS else [value] if self.kind in (INT, FLOAT) else []
        return all(
            (self.low is None or number >= self.low) and (self.high is None or number <= self.high)
            for number in numbers
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe of Forebay's own: what it tells (CLASSES or NUMBERS), by what it is judged, which losses it can lower."""

    name: str
    help: str
    task: str
    metric: str
    losses: tuple[str, ...]
    params: tuple[Param, ...]


LOOP = (
    Param("epochs", INT, 20, "how often the training split is gone through", 1, 1_000_000),
    Param("batch_size", INT, 32, "rows of one step, over all processes; `gd` takes all rows", 1, 10_000_000),
    Param(
        "optimizer", CHOICE, "adam", "`gd` is gradient descent with all rows in each step",
        choices=("gd", "sgd", "adam", "adamw"),
    ),
    Param("lr", FLOAT, 0.001, "learning rate", 1e-12, 1e3),
    Param("momentum", FLOAT, 0.0, "of `gd` and `sgd`", 0, 0.9999),
    Param("weight_decay", FLOAT, 0.0, "pulls weights towards zero", 0, 1e3),
    Param(
        "schedule", CHOICE, "constant", "of the learning rate over the epochs: `cosine` to zero, `step` by 0.1 at each third",
        choices=("constant", "cosine", "step"),
    ),
    Param(
        "loss", CHOICE, "auto", "what is lowered; `auto` is the recipe's first, `bce` is for two classes",
        choices=("auto", "mse", "cross-entropy", "bce"),
    ),
    Param("patience", INT, 0, "stops after so many epochs without a better metric; 0 never", 0, 1_000_000),
    Param("min_delta", FLOAT, 0.0, "how much better counts as better for `patience`", 0, 1e9),
    Param("precision", CHOICE, "32", "of the arithmetic", choices=("32", "bf16-mixed")),
    Param("accumulate", INT, 1, "batches whose gradients make one step", 1, 1_000_000),
    Param("clip", FLOAT, 0.0, "longest gradient, by its norm; 0 any", 0, 1e9),
    Param(
        "class_weights", CHOICE, "none", "`balanced` lets rare classes weigh as much as frequent ones",
        choices=("none", "balanced"),
    ),
    Param("normalize", BOOL, True, "numbers to mean 0 and deviation 1, as found in the training split"),
)  # fmt: skip

_HIDDEN = "widths of hidden layers; none is a linear model"
_DROPOUT = Param("dropout", FLOAT, 0.0, "share of hidden values left out while training", 0, 0.95)
_CATEGORICAL = Param("categorical", NAMES, (), "columns of numbers that are categories; text always is")
_CLASS_LOSSES = ("cross-entropy", "bce")

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "regressor", "a number from the columns of a table: linear, or a multilayer perceptron", NUMBERS, "r2", ("mse",),
            (Param("hidden", INTS, (), _HIDDEN, 1, 65_536), _DROPOUT, _CATEGORICAL),
        ),
        Recipe(
            "classifier", "a class from the columns of a table, by a multilayer perceptron", CLASSES, "accuracy", _CLASS_LOSSES,
            (Param("hidden", INTS, (64,), _HIDDEN, 1, 65_536), _DROPOUT, _CATEGORICAL),
        ),
        Recipe(
            "image-classifier", "a class from an image, by a convolutional network", CLASSES, "accuracy", _CLASS_LOSSES,
            (
                Param("channels", INTS, (32, 64), "channels of each convolution; each halves the image", 1, 4096),
                Param("hidden", INTS, (128,), "widths of hidden layers behind them", 1, 65_536),
                _DROPOUT,
                Param("size", INT, 32, "side in pixels that images of a folder are brought to", 4, 1024),
                Param("shape", INTS, (), "of an image given as a flat list, such as 28,28; none: square and gray", 1, 65_536),
            ),
        ),
        Recipe(
            "sequence-classifier", "a class from a text or a list of numbers, by a recurrent network", CLASSES, "accuracy",
            _CLASS_LOSSES,
            (
                Param("cell", CHOICE, "gru", "kind of recurrent network", choices=("gru", "lstm")),
                Param("hidden", INT, 64, "width of its state", 1, 65_536),
                Param("layers", INT, 1, "how many lie on one another", 1, 64),
                _DROPOUT,
                Param("tokens", CHOICE, "words", "what a text is cut into", choices=("words", "characters")),
                Param("embedding", INT, 32, "width of a token's vector", 1, 65_536),
                Param("vocabulary", INT, 10_000, "most tokens that are told apart; the rarer ones are one", 1, 10_000_000),
                Param("max_length", INT, 256, "what is longer is cut off behind this many elements", 1, 1_000_000),
            ),
        ),
    )
}  # fmt: skip


def parameters(recipe: str) -> tuple[Param, ...]:
    """Those of the loop, and those of the recipe where it is one of RECIPES."""
    known = RECIPES.get(recipe)
    return (*LOOP, *(known.params if known is not None else ()))


def check_params(recipe: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of the loop and of the recipe with its value: as given, of its kind, or its default.

    InvalidInput names the value and what may be given. For a recipe that is none of RECIPES, what the loop does not know
    passes through as it is.
    """
    known = RECIPES.get(recipe)
    table = {param.name: param for param in (*LOOP, *(known.params if known is not None else ()))}
    unknown = [name for name in params if name not in table]
    if known is not None and unknown:
        raise InvalidInput(f"recipe {recipe!r} has no parameter {shown(unknown[0])}; there are {', '.join(table)}")
    made = {name: param.check(params[name]) if name in params else param.default for name, param in table.items()}
    if known is not None and made["loss"] not in ("auto", *known.losses):
        raise InvalidInput(f"recipe {recipe!r} lowers {' or '.join(known.losses)}, not {made['loss']!r}")
    return made | {name: params[name] for name in unknown}


def default_metric(recipe: str) -> str:
    """What the recipe's best state and an alias are judged by when nothing is said: `loss` for one of a third party."""
    return RECIPES[recipe].metric if recipe in RECIPES else "loss"


def check_metric(recipe: str, metric: str | None) -> str:
    """The metric, the recipe's own for None; InvalidInput for one that its task does not have."""
    known = RECIPES.get(recipe)
    able = metrics_of(known.task) if known is not None else tuple(METRICS)
    if metric is not None and metric not in able:
        raise InvalidInput(f"recipe {recipe!r} cannot be judged by {shown(metric)}; choose one of {', '.join(able)}")
    return metric or default_metric(recipe)


def metrics_of(task: str) -> tuple[str, ...]:
    """The metrics that are measured for CLASSES or for NUMBERS."""
    numbers = ("mae", "rmse", "r2")
    return ("loss", *numbers) if task == NUMBERS else tuple(name for name in METRICS if name not in numbers)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _int(value: Any) -> int | None:
    number = _float(value)
    if number is None or number != int(number):
        return None
    return value if isinstance(value, int) else int(number)


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _bool(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False, "yes": True, "no": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _parts(value: Any) -> Sequence[Any] | None:
    if isinstance(value, str):
        return [part.strip() for part in value.strip().strip("[]").split(",") if part.strip()]
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    return value if isinstance(value, list | tuple) else None


def _ints(value: Any) -> tuple[int, ...] | None:
    parts = _parts(value)
    made = [_int(part) for part in parts] if parts is not None else [None]
    numbers = tuple(number for number in made if number is not None)
    return numbers if len(numbers) == len(made) else None


def _names(value: Any) -> tuple[str, ...] | None:
    parts = _parts(value)
    return tuple(parts) if parts is not None and all(isinstance(part, str) for part in parts) else None


def _word(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


_READ = {INT: _int, FLOAT: _float, BOOL: _bool, CHOICE: _word, INTS: _ints, NAMES: _names}
