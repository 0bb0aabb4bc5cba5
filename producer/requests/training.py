"""Submitting training jobs: the recipe and its parameters, the columns that the data has, how its rows are split.

All that can be refused without reading the data is refused here, before anything is stored; what only its values tell (one
class, a target without numbers) the trainer refuses before its first epoch. Loads no recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

import msgspec

from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.queues import Resources
from forebay.contract.references import check_alias, check_name, shown
from forebay.contract.requests.batch import IMAGES
from forebay.contract.requests.fields import check
from forebay.contract.requests.recipes import RECIPES, check_metric, check_params
from forebay.contract.requests.training import Split, TrainRequest
from forebay.contract.signature import Signature
from forebay.datasets.reading.table import FOLDER, column_names
from forebay.producer.options import check_metadata
from forebay.producer.requests.files import DataSet, find_dataset


def draft(model: Any, request: TrainRequest) -> ModelVersion:
    """The version that is to be made: a name, and what its training needs, for the queue to be chosen by."""
    if isinstance(model, str) and set("/@") & set(model):
        raise InvalidInput(f"training makes a new version of a name; {shown(model)} is more than a name")
    processes, needs = float(request.nproc), Resources.parse(request.resources)
    devices = {"gpu": max(needs.gpu, processes)} if needs.gpu else {"cpu": max(needs.cpu, processes)}
    return ModelVersion(
        check_name(model), 0, "", "", "none", 0, Signature.parse(None, None), resources=needs.as_dict() | devices
    )


def make_request(*, recipe: str, dataset: DataSet, format: str | None = None, **options: Any) -> TrainRequest:
    """The request, checked against the recipes and the data set's columns; InvalidInput says what to change.

    `options` are the other fields of TrainRequest, as a user gives them.
    """
    _check_recipe(recipe)
    features, split = options.get("features") or (), options.get("split") or {}
    params = check_metadata(options.get("params"), "params")
    asked = options | {
        "recipe": recipe, "files": (), "format": "", "features": (features,) if isinstance(features, str) else tuple(features),
        "split": msgspec.structs.asdict(split) if isinstance(split, Split) else split, "params": check_params(recipe, params),
        "metric": check_metric(recipe, options.get("metric")), "metadata": check_metadata(options.get("metadata")),
        "resources": Resources.parse(options.get("resources")).as_dict(),
    }  # fmt: skip
    request = check(asked, TrainRequest)
    if request.alias is not None:
        check_alias(request.alias)
    if request.split.column is None and request.split.validation == request.split.test == 0:
        raise InvalidInput("split: a version is judged by rows that are held out; give test a share such as 0.2")
    files, format = find_dataset(dataset, format, "train on one at a time")
    target = FOLDER if request.target is None and format == IMAGES else request.target
    request = msgspec.structs.replace(request, files=tuple(files), format=format, target=target)
    _check_columns(request, column_names(files, format))
    return request


def _check_recipe(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"recipe {shown(name)} is not the name of a recipe; there are {', '.join(RECIPES)}")
    if name in RECIPES or ":" in name:  # only a worker knows what an import path means
        return
    others = sorted(entry.name for entry in entry_points(group="forebay.recipes"))
    if name not in others:
        there = ", ".join(dict.fromkeys([*RECIPES, *others]))
        raise InvalidInput(
            f"there is no recipe {shown(name)}; there are {there}, and import paths such as 'package.module:Recipe'"
        )


def _check_columns(request: TrainRequest, there: Sequence[str]) -> None:
    """InvalidInput, naming the columns there are, when one that is named is missing."""
    target, features, split = request.target, request.features, request.split.by
    if target is None and request.recipe in RECIPES:
        raise InvalidInput(f"target: which column is to be learned? There are {_listed(there)}")
    for what, column in [("target", target), *(("features", name) for name in features), ("split", split)]:
        if column is not None and column not in there:
            raise InvalidInput(f"{what}: there is no column {shown(column)}; there are {_listed(there)}")
    if target in features:
        raise InvalidInput(f"features: {shown(target)} is the target; leave it out of the features")
    if len(set(features)) < len(features):
        raise InvalidInput(f"features: a column is named twice: {shown(list(features))}")
    if not features and not set(there) - {target, split}:
        raise InvalidInput(f"features: there is no column but {_listed(there)} to learn from")


def _listed(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - 30} more" if len(columns) > 30 else ""
    return ", ".join(map(shown, columns[:30])) + more
