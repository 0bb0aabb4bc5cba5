"""`forebay train`: a new version of a model from a data set, with its figures while it is made; and `forebay recipes`."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any

import typer
from msgspec import Struct

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.references import shown
from forebay.contract.requests.fields import Field, fields_of
from forebay.contract.requests.recipes import RECIPES, LoopParams, RecipeInfo, default_metric, metrics_of
from forebay.contract.requests.training import TrainRequest
from forebay.producer.cli.commands import ResourceOptions, command, job_command, request_options, root
from forebay.producer.cli.options import Format, argument, option, pairs
from forebay.producer.cli.output import print_fields, print_json, print_line, print_note, print_table
from forebay.producer.cli.views.results import ARRIVES_S
from forebay.producer.cli.views.training import run_fields
from forebay.producer.client import Client
from forebay.producer.handles.kinds import TrainingJob
from forebay.producer.options import SubmitOptions

NOT_OPTIONS = ("files", "format", "params", "resources", "metadata")  # of TrainRequest: they have options of their own


def _list_recipes(asked: bool) -> None:
    if asked:
        print_recipes()
        raise typer.Exit


def _print(job: TrainingJob, info: JobInfo) -> None:
    if info.state is JobState.SUCCEEDED:
        print_fields({"model": job.result(ARRIVES_S).ref} | run_fields(job.run) | {"job": job.id})
    elif info.state in (JobState.FAILED, JobState.CANCELED):
        kept = job.checkpoints
        goes_on = (
            f"goes on from the checkpoint of step {kept[0].step:,}" if kept else "begins anew: it has no checkpoint"
        )
        print_note(f"forebay jobs retry {job.id} {goes_on}")


def _print_json(job: TrainingJob, info: JobInfo) -> None:
    told: dict[str, Any] = {"id": job.id, "state": info.state, "error": info.error}
    if info.state is JobState.SUCCEEDED:
        run = job.run
        told |= {
            "model": job.result(ARRIVES_S).ref,
            "metrics": run.metrics,
            "promoted": run.promoted,
            "verdict": run.verdict,
        }
    print_json(told)


@job_command(
    JobKind.TRAIN,
    "forebay train digits --recipe image-classifier --dataset digits.parquet --target label --epochs 20 --alias champion",
    "forebay train houses --recipe regressor --dataset 'houses/*.csv' --target price --param hidden=64,32 --no-wait",
    "forebay train flowers --recipe image-classifier --dataset flowers/ --param size=64 --early-stopping-epochs 3",
    "forebay train --list-recipes",
    show=_print,
    show_json=_print_json,
)
@request_options("request", TrainRequest, without=NOT_OPTIONS)
@request_options("loop", LoopParams, only=("epochs", "early_stopping_epochs"))
@request_options("resources", ResourceOptions)
def train(
    context: typer.Context,
    client: Client,
    model: Annotated[str, argument("MODEL", "The name whose next version is made.")],
    dataset: Annotated[list[str], option("DATA", "A path, glob (in quotes), folder or URL; may be repeated.")],
    request: dict[str, Any],
    loop: dict[str, Any],
    resources: dict[str, Any],
    options: SubmitOptions,
    param: Annotated[list[str] | None, option("NAME=VALUE", "See `forebay recipes`; may be repeated.")] = None,
    format: Format = None,
    when_drift: Annotated[
        float | None, option("PSI", "Not now, but once for each version of which a column drifts so far, such as 0.2.")
    ] = None,
    list_recipes: Annotated[
        bool,
        typer.Option("--list-recipes", is_eager=True, callback=_list_recipes, help="Print recipes and parameters."),
    ] = False,
) -> TrainingJob:
    """Train the next version of a model, judge it on rows that were held out, and move an alias if it is better.

    On a terminal a bar and sparklines show how it goes. Ctrl-C leaves it running; `forebay jobs wait ID` shows it again. A killed
    trainer goes on from its last checkpoint, and so does `forebay jobs retry ID` after a failure or a cancel, if there is one.
    Exit status 1 when it fails.
    """
    del list_recipes
    params = given_params(param, loop)
    asked: dict[str, Any] = {"format": format, "params": params, "resources": resources, **request, **options}
    if when_drift is None:
        return client.train(model, dataset=dataset, **asked)
    standing = client.retraining.add(model, when_drift, dataset=dataset, **asked)
    if context.params["as_json"]:
        print_json({"id": standing.id, "watched": standing.watched, "threshold": standing.threshold})
    else:
        print_line(f"{standing.id}: trains {model} when a column of {standing.watched} drifts by {when_drift:g}")
        print_note(f"forebay models retraining lists it; --remove {standing.id} takes it back")
    raise typer.Exit


def given_params(param: list[str] | None, loop: dict[str, Any]) -> dict[str, Any]:
    """`--param`, and the parameters of the loop that have options of their own."""
    given = pairs(param, "--param") or {}
    twice = next((name for name in loop if name in given), None)
    if twice is not None:
        raise InvalidInput(f"--{twice.replace('_', '-')} and --param {twice}=… are the same; give one of them")
    return given | loop


@command(root, "forebay recipes", "forebay recipes image-classifier", "forebay recipes --json")
def recipes(
    as_json: bool, recipe: Annotated[str | None, argument("RECIPE", "Only this one's.", default="all")] = None
) -> None:
    """List the recipes, their parameters and the metrics they may be judged by.

    Recipes that others have added are not known here; they have the parameters of the training loop, and their own.
    """
    if recipe is not None and recipe not in RECIPES:
        raise InvalidInput(f"there is no recipe {shown(recipe)}; there are {', '.join(RECIPES)}")
    if as_json:
        chosen = [_recipe_json(r) for r in RECIPES.values() if recipe in (None, r.name)]
        print_json({"loop": _described(LoopParams), "recipes": chosen})
        return
    print_recipes(recipe)


def print_recipes(only: str | None = None) -> None:
    """Recipes, then the parameters of each and those of the loop, as tables."""
    chosen = [r for r in RECIPES.values() if only in (None, r.name)]
    rows = [
        (r.name, task, default_metric(r.name, {"task": task}), ", ".join(metrics_of(task)), r.help)
        for r in chosen
        for task in r.tasks
    ]
    print_table(("RECIPE", "TASK", "JUDGED BY", "METRICS", "IT TELLS"), rows)
    print_line("")
    loop = [] if all(r.fitted for r in chosen) else [("every recipe but trees and svm", LoopParams)]
    several = [*((r.name, r.params) for r in chosen), *loop]
    params = [_row(owner, param) for owner, kind in several for param in fields_of(kind).values()]
    print_table(("OF", "PARAMETER", "DEFAULT", "VALUES", "WHAT IT IS"), params)


def _row(owner: str, param: Field) -> tuple[str, str, str, str, str]:
    return owner, param.name, param.default_text, param.expected, param.help


def _recipe_json(recipe: RecipeInfo) -> dict[str, Any]:
    about = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return about | {"metric": default_metric(recipe.name, {}), "params": _described(recipe.params)}


def _described(kind: type[Struct]) -> list[dict[str, Any]]:
    return [
        {"name": field.name, "default": field.default, "expected": field.expected, "help": field.help}
        for field in fields_of(kind).values()
    ]
