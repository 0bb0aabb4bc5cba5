"""Submitting training jobs: the recipe and its parameters, the columns that the data has, how its rows are split.

All that can be refused without reading the data is refused here, before anything is stored; what only its values tell (one
class, a target without numbers) the trainer refuses before its first epoch. Loads no recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

import msgspec

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind
from forebay.contract.model import ModelVersion
from forebay.contract.queues import Resources
from forebay.contract.references import check_alias, check_name, shown
from forebay.contract.requests.batch import MEDIA
from forebay.contract.requests.fields import check
from forebay.contract.requests.recipes import FINETUNE, RECIPES, check_metric, check_params
from forebay.contract.requests.training import Split, TrainRequest
from forebay.contract.signature import Signature
from forebay.datasets.reading.table import FOLDER, column_names
from forebay.producer.artifacts import adaptable
from forebay.producer.handles.kinds import TrainingJob
from forebay.producer.options import SubmitOptions, check_metadata
from forebay.producer.requests.files import DataSet, check_examples, find_dataset
from forebay.producer.submit import Submitter


def submit(
    find: Callable[[str], ModelVersion], submitter: Submitter, model: Any, options: Mapping[str, Any]
) -> TrainingJob:
    """A training job with the options that Client.train takes."""
    asked, submits = split_options(options)
    request = make_request(find, **asked)
    return submitter.submit_request(
        TrainingJob, submitter.check(JobKind.TRAIN, draft(model, request), submits), request
    )


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the request, and those of the submit; the metadata is both."""
    submits = {name: value for name, value in options.items() if name in SubmitOptions.__annotations__}
    asked = {name: value for name, value in options.items() if name not in submits}
    return asked | {"metadata": options.get("metadata")}, submits


def draft(model: Any, request: TrainRequest) -> ModelVersion:
    """The version that is to be made: a name, and what its training needs, for the queue to be chosen by."""
    if isinstance(model, str) and set("/@") & set(model):
        raise InvalidInput(f"training makes a new version of a name; {shown(model)} is more than a name")
    processes, needs = float(request.nproc), Resources.parse(request.resources)
    devices = {"gpu": max(needs.gpu, processes)} if needs.gpu else {"cpu": max(needs.cpu, processes)}
    return ModelVersion(
        check_name(model), 0, "", "", "none", 0, Signature.parse(None, None), resources=needs.as_dict() | devices
    )


def make_request(
    find: Callable[[str], ModelVersion], *, recipe: str, dataset: DataSet, format: str | None = None, **options: Any
) -> TrainRequest:
    """The request, checked against the recipes and the data set's columns; InvalidInput says what to change.

    `options` are the other fields of TrainRequest, as a user gives them. `find` gives the version that a reference means.
    """
    _check_recipe(recipe)
    features, split = options.get("features") or (), options.get("split")
    params = check_params(recipe, check_metadata(options.get("params"), "params"))
    if recipe == FINETUNE:
        base = adaptable(params["base"], find)
        params |= {"base": base.ref}
        options = {"max_batch_size": base.max_batch_size} | options
        options["resources"] = options.get("resources") or base.resources
    asked = options | {
        "recipe": recipe, "files": (), "format": "", "features": (features,) if isinstance(features, str) else features,
        "split": _as_mapping(split), "params": params,
        "metric": check_metric(recipe, options.get("metric"), params), "metadata": check_metadata(options.get("metadata")),
        "resources": Resources.parse(options.get("resources")).as_dict(),
    }  # fmt: skip
    request = check(asked, TrainRequest)
    if recipe in RECIPES and RECIPES[recipe].fitted:
        _check_fitted(request)
    if request.alias is not None:
        check_alias(request.alias)
    if request.split.column is None and request.split.validation == request.split.test == 0:
        raise InvalidInput("split: a version is judged by rows that are held out; give test a share such as 0.2")
    files, format = find_dataset(dataset, format, "train on one at a time")
    target = FOLDER if request.target is None and format in MEDIA else request.target
    request = msgspec.structs.replace(request, files=tuple(files), format=format, target=target)
    there = column_names(files, format)
    if recipe == FINETUNE:
        _check_examples(request)
    elif target is None and recipe in RECIPES:
        raise InvalidInput(f"target: which column is to be learned? There are {', '.join(map(shown, there)):.1000}")
    request.check_columns(there)
    return request


def _check_examples(request: TrainRequest) -> None:
    if request.target is not None or request.features:
        raise InvalidInput(f"{FINETUNE} learns messages, or prompt and completion; leave target and features out")
    if request.missing != "drop":
        raise InvalidInput(f"missing: {FINETUNE} fills nothing in; leave it out")
    check_examples(request.files, request.format)


def _check_fitted(request: TrainRequest) -> None:
    if request.nproc > 1 or request.nodes > 1:
        raise InvalidInput(f"recipe {request.recipe!r} is fitted by one process; leave nproc and nodes out")
    if request.checkpoint_steps is not None:
        raise InvalidInput(f"recipe {request.recipe!r} has no checkpoints; leave checkpoint_steps out")


def _as_mapping(split: Split | Mapping[str, Any] | None) -> Any:
    return msgspec.structs.asdict(split) if isinstance(split, Split) else {} if split is None else split


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
