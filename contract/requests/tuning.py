"""Tune jobs as both ends see them: which parameters of a recipe are searched, over which values, and how.

A trial is a training job. Knows nothing of Optuna, torch or SQL.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, inspect

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.fields import Field
from forebay.contract.requests.recipes import RECIPES, check_params, parameters
from forebay.contract.requests.request import Request
from forebay.contract.requests.training import METRICS, TrainRequest

MAX_TRIALS, MAX_PARALLEL, MAX_CHOICES = 1000, 64, 1000
APART = ("base", "task")  # what trials differ in by these cannot be compared
MAX_PLACES = 12  # of a number that a step leads to
EXAMPLE = '{"lr": {"low": 1e-4, "high": 1e-1, "log": true}, "hidden": [32, 64]}'


class Range(Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers from `low` to `high`, both included: whole ones when these and `step` are. With `log` each power of ten is as
    likely as any other; with `step` there are only `low`, `low + step` and so on.
    """  # fmt: skip

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def __post_init__(self) -> None:
        """InvalidInput for bounds that leave nothing to search."""
        numbers = [self.low, self.high, *([] if self.step is None else [self.step])]
        if not all(math.isfinite(number) for number in numbers):
            raise InvalidInput(f"low, high and step are finite numbers, got {', '.join(f'{n:g}' for n in numbers)}")
        if self.low >= self.high:
            raise InvalidInput(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise InvalidInput(f"with log, low is above 0, got {self.low:g}")
        if self.step is not None and (self.step <= 0 or self.step > self.high - self.low or self.log):
            raise InvalidInput(f"step {self.step:g} is above 0, at most high - low, and not with log")

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    @property
    def count(self) -> int | None:
        """How many numbers there are; None when that has no end."""
        step = self.step or (1 if self.whole else None)
        return None if step is None else math.floor((self.high - self.low) / step + 1e-9) + 1

    def at(self, index: int) -> int | float:
        """One of the numbers that can be counted, from 0 on."""
        value = self.low + index * (self.step or 1)
        return value if isinstance(value, int) else round(value, MAX_PLACES)


Space = Mapping[str, Range | tuple[Any, ...]]  # choices are JSON data, as a recipe's parameters are given


class TuneRequest(Request, frozen=True):
    """What a tune job is to do, as its payload holds it. `train` is what every trial does, with other parameters; its alias moves
    to the best trial's version.
    """  # fmt: skip

    train: TrainRequest
    space: Annotated[Space, Meta(description="the parameters that are searched, each a range or a list of values")]
    trials: Annotated[int, Meta(ge=1, le=MAX_TRIALS, description="how many are run, one by one or `parallel`")] = 20
    sampler: Annotated[
        Literal["tpe", "random", "grid"],
        Meta(description="chooses the next trial: by what the others gave, at random, or all combinations"),
    ] = "tpe"
    pruner: Annotated[
        Literal["median", "halving"] | None,
        Meta(description="ends a trial early that falls behind the median, or the best third; none: none is"),
    ] = None
    parallel: Annotated[int, Meta(ge=1, le=MAX_PARALLEL, description="trials that wait or run at a time")] = 1

    @property
    def planned(self) -> int:
        """How many trials there are to run: none is run twice, so a small space has fewer."""
        size = space_size(self.space)
        return self.trials if size is None else min(self.trials, size)

    def summary(self) -> dict[str, Any]:
        """The request as plain data, without its files."""
        asked: dict[str, Any] = msgspec.to_builtins(self)
        return asked | {"train": self.train.summary()}

    def trial(self, params: Mapping[str, Any]) -> TrainRequest:
        """What the trial with these of its parameters does."""
        asked = check_params(self.train.recipe, {**self.train.params, **params})
        return msgspec.structs.replace(self.train, params=asked, alias=None)


def space_size(space: Space) -> int | None:
    """How many combinations there are; None when that has no end."""
    counts = [one.count if isinstance(one, Range) else len(one) for one in space.values()]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def combination(space: Space, index: int) -> dict[str, Any]:
    """One of the combinations of a space that has an end, from 0 on."""
    chosen = {}
    for name, one in space.items():
        index, i = divmod(index, (one.count or 1) if isinstance(one, Range) else len(one))
        chosen[name] = one.at(i) if isinstance(one, Range) else one[i]
    return chosen


def contains(space: Space, params: Mapping[str, Any]) -> bool:
    """Whether these parameters are one of the combinations."""
    return all(name in params and _holds(one, params[name]) for name, one in space.items())


def best_first(metric: str, values: Iterable[tuple[float, int]]) -> list[tuple[float, int]]:
    """Values of trials with their numbers, the best first; of equal ones the earlier."""
    sign = -1 if METRICS.get(metric) else 1
    return sorted(values, key=lambda item: (sign * item[0], item[1]))


def check_space(recipe: str, given: Any, params: Mapping[str, Any]) -> dict[str, Range | tuple[Any, ...]]:
    """The space, checked against the parameters of the recipe, whose values may be text as a command line gives it.

    `params` are those that were given beside it. InvalidInput names the parameter, and what it may be.
    """
    if not isinstance(given, Mapping) or not given:
        raise InvalidInput(f"space: give the parameters that are searched, such as {EXAMPLE}; got {shown(given)}")
    both = next((name for name in given if name in params), None)
    if both is not None:
        raise InvalidInput(f"{both} is in params and in space; give it in one of them")
    known = parameters(recipe)
    for name in given:
        if recipe in RECIPES and name not in known:
            raise InvalidInput(f"space: recipe {recipe!r} has no parameter {shown(name)}; there are {', '.join(known)}")
        if name in APART:
            raise InvalidInput(
                f"space: {name} cannot be searched, for it says what a model is; tune for each value by itself"
            )
    return {str(name): _checked(recipe, str(name), one, known.get(name)) for name, one in given.items()}


def _checked(recipe: str, name: str, given: Any, field: Field | None) -> Range | tuple[Any, ...]:
    try:
        if isinstance(given, Range | Mapping):
            return _range(recipe, name, _as_range(given), field)
        if not isinstance(given, list | tuple) or not 1 <= len(given) <= MAX_CHOICES:
            raise InvalidInput(
                f"give a range or a list of 1 to {MAX_CHOICES} values, such as {EXAMPLE}; got {shown(given)}"
            )
        return _choices(recipe, name, given)
    except InvalidInput as error:
        raise InvalidInput(f"space: {name}: {str(error).removeprefix(f'{name}: ')}") from error


def _as_range(given: Range | Mapping[str, Any]) -> Range:
    try:
        return given if isinstance(given, Range) else msgspec.convert(dict(given), Range)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, InvalidInput):
            raise error.__cause__ from None
        raise InvalidInput(f"a range has low and high, and may have log or step: {error}; got {shown(given)}") from None


def _range(recipe: str, name: str, given: Range, field: Field | None) -> Range:
    if field is not None and not isinstance(field.type, inspect.IntType | inspect.FloatType):
        raise InvalidInput(f"it is {field.expected}: give a list of values")
    if isinstance(field and field.type, inspect.FloatType):
        step = None if given.step is None else float(given.step)
        given = Range(float(given.low), float(given.high), given.log, step)
    for end in (given.low, given.high, *((given.at(1),) if given.step else ())):
        check_params(recipe, {name: end})
    return given


def _choices(recipe: str, name: str, given: Sequence[Any]) -> tuple[Any, ...]:
    values = [msgspec.to_builtins(check_params(recipe, {name: value})[name]) for value in given]
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise InvalidInput(f"{shown(twice)} is there twice")
    return tuple(list(value) if isinstance(value, tuple) else value for value in values)


def _holds(one: Range | tuple[Any, ...], value: Any) -> bool:
    if not isinstance(one, Range):
        return value in one
    if isinstance(value, bool) or not isinstance(value, int | float) or not one.low <= value <= one.high:
        return False
    return one.count is None or bool(value == one.at(round((value - one.low) / (one.step or 1))))
