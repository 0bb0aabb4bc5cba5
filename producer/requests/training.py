"""Submitting training jobs: the recipe and its parameters, the columns that the data has, how its rows are parted.

All that can be refused without reading the data is refused here, before anything is stored; what only its values tell (one
class, a target without numbers) the trainer refuses before its first epoch. Loads no recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.queues import Resources
from forebay.contract.references import check_alias, check_name, shown
from forebay.contract.requests.batch import IMAGES
from forebay.contract.requests.recipes import RECIPES, check_metric, check_params
from forebay.contract.requests.training import Checkpoints, Split, TrainRequest
from forebay.contract.signature import Signature
from forebay.datasets.reading.table import FOLDER, column_names
from forebay.producer.models import check_batch_size
from forebay.producer.options import check_metadata
from forebay.producer.requests.files import DataSet, find_dataset

MOST_PROCESSES, MOST_NODES = 64, 64
MOST_KEPT = 100
MAX_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user asks a training job to do, as `Client.train` was given it."""

    recipe: str
    dataset: DataSet
    target: str | None
    format: str | None
    params: Mapping[str, Any] | None
    features: Sequence[str] | str | None
    missing: str
    split: Any
    seed: int
    metric: str | None
    alias: str | None
    nproc: int
    nodes: int
    resources: Mapping[str, Any] | None
    checkpoint_steps: int | None
    checkpoint_minutes: Any
    checkpoint_keep: int
    max_batch_size: int
    metadata: Mapping[str, Any] | None


def draft(model: Any, asked: Asked) -> ModelVersion:
    """The version that is to be made: a name, and what its training needs, for the queue to be chosen by."""
    if isinstance(model, str) and set("/@") & set(model):
        raise InvalidInput(f"training makes a new version of a name; {shown(model)} is more than a name")
    needs = Resources.parse(asked.resources)
    _whole("nproc", asked.nproc, 1, MOST_PROCESSES)
    _whole("nodes", asked.nodes, 1, MOST_NODES)
    devices = {"gpu": max(needs.gpu, float(asked.nproc))} if needs.gpu else {"cpu": max(needs.cpu, float(asked.nproc))}
    return ModelVersion(
        check_name(model), 0, "", "", "none", 0, Signature.parse(None, None), resources=needs.as_dict() | devices
    )


def make_request(asked: Asked) -> TrainRequest:
    """The request, checked against the table of recipes and the data set's columns; InvalidInput says what will not do."""
    _check_recipe(asked.recipe)
    params = check_params(asked.recipe, check_metadata(asked.params, "params"))
    metric = check_metric(asked.recipe, asked.metric)
    split = read_split(asked.split)
    files, format = find_dataset(asked.dataset, asked.format, "train on one at a time")
    target, features = _columns(asked, split, column_names(files, format), format)
    return TrainRequest(
        recipe=asked.recipe, files=tuple(files), format=format, target=target, features=features,
        missing=_missing(asked.missing), split=split, seed=_whole("seed", asked.seed, 0, MAX_SEED), params=params,
        metric=metric, alias=None if asked.alias is None else check_alias(asked.alias),
        checkpoints=_checkpoints(asked), nproc=asked.nproc, nodes=asked.nodes,
        max_batch_size=check_batch_size(asked.max_batch_size), resources=Resources.parse(asked.resources).as_dict(),
        metadata=check_metadata(asked.metadata),
    )  # fmt: skip


def read_split(given: Any) -> Split:
    """How rows are parted: shares `validation` and `test`, and either a `column` whose values say it, or a `key`."""
    if given is None:
        return Split()
    if isinstance(given, Split):
        return _checked(given)
    if not isinstance(given, Mapping):
        raise InvalidInput(f"split: expected a mapping such as {{'test': 0.2}}, got {shown(given)}")
    unknown = [name for name in given if name not in ("validation", "test", "column", "key")]
    if unknown:
        raise InvalidInput(f"split: unknown {shown(unknown[0])}; known are validation, test, column, key")
    if "column" in given and "key" in given:
        raise InvalidInput("split: give a column whose values are train, validation and test, or a key, not both")
    if "column" in given and ("validation" in given or "test" in given):
        raise InvalidInput("split: the values of the column say which rows are which; leave validation and test out")
    by = next((name for name in ("column", "key") if name in given), "ratio")
    default = Split()
    shares = {name: given.get(name, getattr(default, name)) for name in ("validation", "test")}
    return _checked(Split(by, given.get(by) if by != "ratio" else None, **shares))


def _checked(split: Split) -> Split:
    if split.by not in ("ratio", "column", "key"):
        raise InvalidInput(f"split: {shown(split.by)} is no way to part rows; there are ratio, column, key")
    if split.by != "ratio" and (not isinstance(split.column, str) or not split.column):
        raise InvalidInput(f"split: {split.by} names a column, got {shown(split.column)}")
    shares: tuple[tuple[str, Any], ...] = (("validation", split.validation), ("test", split.test))
    for name, share in shares:
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share < 1:
            raise InvalidInput(f"split: {name} is a share of all rows from 0 up to 1, got {shown(share)}")
    if split.by == "column":
        return split
    if split.validation == split.test == 0:
        raise InvalidInput("split: a version is judged by rows that are held out; give test a share such as 0.2")
    if split.validation + split.test >= 1:
        raise InvalidInput(
            f"split: validation {split.validation:g} and test {split.test:g} leave no row to train on; give less than 1 in all"
        )
    return split


def _check_recipe(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"recipe {shown(name)} is no name of a recipe; there are {', '.join(RECIPES)}")
    if name in RECIPES or ":" in name:  # an import path is the worker's to know
        return
    others = sorted(entry.name for entry in entry_points(group="forebay.recipes"))
    if name not in others:
        there = ", ".join(dict.fromkeys([*RECIPES, *others]))
        raise InvalidInput(
            f"there is no recipe {shown(name)}; there are {there}, and import paths such as 'package.module:Recipe'"
        )


def _columns(asked: Asked, split: Split, there: Sequence[str], format: str) -> tuple[str | None, tuple[str, ...]]:
    """The target and the features; InvalidInput, naming the columns there are, when one is missing."""
    target = asked.target if asked.target is not None else (FOLDER if format == IMAGES else None)
    if target is None and asked.recipe in RECIPES:
        raise InvalidInput(f"target: which column is to be told? There are {_listed(there)}")
    given = [asked.features] if isinstance(asked.features, str) else list(asked.features or ())
    for what, column in [("target", target), *(("features", name) for name in given), ("split", split.column)]:
        if column is not None and column not in there:
            raise InvalidInput(f"{what}: there is no column {shown(column)}; there are {_listed(there)}")
    if target in given:
        raise InvalidInput(f"features: {shown(target)} is the target; nothing is to be learnt from it")
    if len(set(given)) < len(given):
        raise InvalidInput(f"features: a column is named twice: {shown(given)}")
    if not given and not set(there) - {target, split.column}:
        raise InvalidInput(f"features: there is no column but {_listed(there)} to learn from")
    return target, tuple(given)


def _listed(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - 30} more" if len(columns) > 30 else ""
    return ", ".join(map(shown, columns[:30])) + more


def _missing(value: Any) -> str:
    if value in ("drop", "mean"):
        return str(value)
    constant = value.removeprefix("constant:") if isinstance(value, str) and value.startswith("constant:") else ""
    if not constant:
        raise InvalidInput(f"missing {shown(value)}: write 'drop', 'mean' or 'constant:VALUE'")
    return str(value)


def _checkpoints(asked: Asked) -> Checkpoints:
    steps, minutes = asked.checkpoint_steps, asked.checkpoint_minutes
    if steps is not None:
        _whole("checkpoint_steps", steps, 1, 2**31 - 1)
    if minutes is not None and (
        not isinstance(minutes, int | float) or isinstance(minutes, bool) or not math.isfinite(minutes) or minutes <= 0
    ):
        raise InvalidInput(f"checkpoint_minutes {shown(minutes)} is not a number of minutes above 0")
    keep = _whole("checkpoint_keep", asked.checkpoint_keep, 1, MOST_KEPT)
    return Checkpoints(steps, None if minutes is None else float(minutes), keep)


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InvalidInput(f"{name} {shown(value)} is not a whole number from {low} to {high}")
    return value
