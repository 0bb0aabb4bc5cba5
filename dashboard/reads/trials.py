"""A tune in pictures: what trials are worth by each parameter, how much of that each parameter explains, the best so far."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forebay.contract.job import JobState
from forebay.contract.requests.tuning import Range, Space
from forebay.dashboard.reads.curves import Chart, lower_is_better
from forebay.storage.tuning.records import Trial

BINS = 4  # of the numbers of a range, with as many trials in each
FEW = 8  # trials: of fewer nothing can be told
MAX_SLICES, MAX_TICKS = 12, 6


@dataclass(frozen=True, slots=True)
class Dot:
    """One trial: where its parameter lies from left to right, and its value from below, both from 0 to 1."""

    x: float
    y: float
    trial: Trial


@dataclass(frozen=True, slots=True)
class Slice:
    """The trials by one parameter. `ticks` are places with values of it; `share` is its importance."""

    name: str
    dots: list[Dot]
    ticks: list[tuple[float, Any]]
    low: float
    high: float
    share: float | None


def slices(space: Space, trials: Sequence[Trial]) -> list[Slice]:
    """A picture for each parameter, the most important first. Of trials that were pruned it has what they had then."""
    valued = [trial for trial in trials if trial.value is not None]
    if not valued:
        return []
    values = [trial.value or 0.0 for trial in valued]
    low, high = min(values), max(values)
    shares = importance(space, trials)
    made = [
        Slice(
            name, [Dot(_place(one, trial.params[name]), _share(trial.value or 0.0, low, high), trial) for trial in valued],
            _ticks(one), low, high, shares.get(name),
        )
        for name, one in space.items()
    ]  # fmt: skip
    return sorted(made, key=lambda one: -(one.share or 0.0))[:MAX_SLICES]


def importance(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """Which share of the variance between trials that have succeeded each parameter explains by itself, with the part left out
    that as many groups would explain by chance (epsilon squared): 0 to 1, {} of too few trials.
    """  # fmt: skip
    done = [trial for trial in trials if trial.state == JobState.SUCCEEDED and trial.value is not None]
    values = [trial.value or 0.0 for trial in done]
    if len(done) < FEW or max(values) - min(values) <= 1e-12 * max(map(abs, values)):
        return {}
    return {name: _explained(_groups(one, [t.params[name] for t in done]), values) for name, one in space.items()}


def best_so_far(trials: Sequence[Trial], metric: str) -> Chart:
    """Each trial's value, and the best of all up to it."""
    pick = min if lower_is_better(metric) else max
    done = [trial.value if trial.state == JobState.SUCCEEDED else None for trial in trials]
    known: list[float | None] = []
    for value in done:
        both = [v for v in (value, known[-1] if known else None) if v is not None]
        known.append(pick(both) if both else None)
    return Chart(
        f"{metric} by trial", [t.number for t in trials], [("best so far", known), ("each trial", done)], [0, 1]
    )


def _groups(one: Range | tuple[Any, ...], values: Sequence[Any]) -> list[Any]:
    """To which group each belongs: its choice, or the quarter of all trials by the order of their numbers."""
    if not isinstance(one, Range):
        return [one.index(value) for value in values]
    different = sorted(set(values))
    if len(different) <= BINS:
        return list(values)
    return [BINS * sorted(values).index(value) // len(values) for value in values]


def _explained(groups: Sequence[Any], values: Sequence[float]) -> float:
    of: defaultdict[Any, list[float]] = defaultdict(list)
    for group, value in zip(groups, values, strict=True):
        of[group].append(value)
    mean = sum(values) / len(values)
    total = sum((value - mean) ** 2 for value in values)
    within = sum((value - sum(some) / len(some)) ** 2 for some in of.values() for value in some)
    left = len(values) - len(of)
    by_chance = (len(of) - 1) * within / left if left else total
    return max(0.0, (total - within - by_chance) / total)


def _place(one: Range | tuple[Any, ...], value: Any) -> float:
    if not isinstance(one, Range):
        return (one.index(value) + 0.5) / len(one)
    if one.log:
        return _share(math.log(value), math.log(one.low), math.log(one.high))
    return _share(value, one.low, one.high)


def _ticks(one: Range | tuple[Any, ...]) -> list[tuple[float, Any]]:
    if isinstance(one, Range):
        middle = math.sqrt(one.low * one.high) if one.log else (one.low + one.high) / 2
        middle = round(middle) if one.whole else middle
        return [(_place(one, value), value) for value in (one.low, middle, one.high)]
    every = -(-len(one) // MAX_TICKS)
    return [(_place(one, value), value) for i, value in enumerate(one) if i % every == 0]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5
