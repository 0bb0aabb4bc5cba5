"""`forebay train`: a new version of a model from a data set, with its figures while it is made."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from forebay.contract.errors import InvalidInput, JobFailed, ResultTimeout
from forebay.contract.job import JobInfo, JobState
from forebay.contract.requests.recipes import RECIPES
from forebay.producer.cli.options import (
    Deadline,
    Home,
    Json,
    Key,
    Metadata,
    Queue,
    Timeout,
    deadline,
    examples,
    names,
    open_client,
    pairs,
    timeout_s,
)
from forebay.producer.cli.output import clear_errors, print_fields, print_json, say, write
from forebay.producer.cli.recipes import print_recipes
from forebay.producer.cli.results import ARRIVES_S, note_unserved, wait_for
from forebay.producer.cli.training_views import run_fields
from forebay.producer.handles.kinds import TrainingJob

EXAMPLES = examples(
    "forebay train digits --recipe image-classifier --dataset digits.parquet --target label --epochs 20 --alias champion",
    "forebay train houses --recipe regressor --dataset 'houses/*.csv' --target price --param hidden=64,32 --detach",
    "forebay train flowers --recipe image-classifier --dataset flowers/ --param size=64 --patience 3",
    "forebay train --list-recipes",
)


def _list_recipes(asked: bool) -> None:
    if asked:
        print_recipes()
        raise typer.Exit


@clear_errors()
def train(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The name whose next version is made.", show_default=False)
    ],
    recipe: Annotated[
        str,
        typer.Option(metavar="RECIPE", help=f"{', '.join(RECIPES)}, or package.module:Recipe.", show_default=False),
    ],
    dataset: Annotated[
        list[str],
        typer.Option(
            metavar="DATA", help="A path, glob (in quotes), folder or URL; may be repeated.", show_default=False
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="What is to be told.", show_default="label, of image folders"),
    ] = None,
    features: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Columns to learn from, by comma.", show_default="all others")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="The same as --param epochs=N.", show_default="20")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(metavar="N", help="Stop after N epochs that bring nothing.", show_default="never")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="See `forebay recipes`; may be repeated.", show_default=False),
    ] = None,
    missing: Annotated[str, typer.Option(metavar="HOW", help="Missing values: drop, mean or constant:VALUE.")] = "drop",
    validation: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Rows that choose the best state.", show_default="0.1")
    ] = None,
    test: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Rows that are held out, to judge by.", show_default="0.2")
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="It says train, validation or test.", show_default=False)
    ] = None,
    split_key: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Rows of equal value stay together.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the split and of the training.")] = 0,
    metric: Annotated[
        str | None, typer.Option(metavar="METRIC", help="What it is judged by.", show_default="the recipe's own")
    ] = None,
    alias: Annotated[
        str | None, typer.Option(metavar="ALIAS", help="Moves if the new version is better.", show_default=False)
    ] = None,
    format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Of the files.", show_default="by their ending")
    ] = None,
    nproc: Annotated[int, typer.Option(metavar="N", help="Processes on each machine.")] = 1,
    nodes: Annotated[int, typer.Option(metavar="N", help="Machines.")] = 1,
    gpu: Annotated[float | None, typer.Option(metavar="N", help="GPUs it needs.", show_default=False)] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="GPU memory it needs: 2GiB.", show_default=False)
    ] = None,
    cpu: Annotated[float | None, typer.Option(metavar="N", help="CPU cores it needs.", show_default=False)] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory it needs: 500MB.", show_default=False)
    ] = None,
    checkpoint_steps: Annotated[
        int | None, typer.Option(metavar="N", help="Save after so many steps.", show_default="not by steps")
    ] = None,
    checkpoint_minutes: Annotated[float, typer.Option(metavar="N", help="Save after so many minutes.")] = 5.0,
    checkpoint_keep: Annotated[int, typer.Option(metavar="N", help="Keep the last N.")] = 3,
    max_batch_size: Annotated[int, typer.Option(metavar="N", help="Of the new version, when it serves.")] = 256,
    follow: Annotated[bool, typer.Option("--follow/--detach", help="Wait and show figures, or print the id.")] = True,
    timeout: Timeout = None,
    priority: Annotated[int, typer.Option(metavar="0-9", help="0 comes first.")] = 5,
    queue: Queue = None,
    deadline_: Deadline = None,
    max_attempts: Annotated[int, typer.Option(metavar="N", help="How often it may be started.")] = 10,
    idempotency_key: Key = None,
    metadata: Metadata = None,
    list_recipes: Annotated[
        bool,
        typer.Option("--list-recipes", is_eager=True, callback=_list_recipes, help="Print recipes and parameters."),
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Train the next version of a model, judge it on rows that were held out, and move an alias if it is better.

    On a terminal a bar and sparklines show how it goes. Ctrl-C leaves it running; `forebay jobs wait ID` shows it again. A killed
    trainer goes on from its last checkpoint, and so does `forebay jobs retry ID` after a failure or a cancel. Exit status 1 when
    it fails.
    """
    del list_recipes
    wait_s = timeout_s(timeout)
    wanted = {"gpu": gpu, "gpu_memory": gpu_memory, "cpu": cpu, "memory": memory}
    shares = {"validation": validation, "test": test, "column": split_column, "key": split_key}
    with open_client(home) as client:
        job = client.train(
            model, recipe=recipe, dataset=dataset, target=target, params=_params(param, epochs, patience),
            features=names(features), missing=missing, split=_given(shares) or None, seed=seed, metric=metric, alias=alias,
            format=format, nproc=nproc, nodes=nodes, resources=_given(wanted), checkpoint_steps=checkpoint_steps,
            checkpoint_minutes=checkpoint_minutes, checkpoint_keep=checkpoint_keep, max_batch_size=max_batch_size,
            priority=priority, queue=queue, deadline=deadline(deadline_), max_attempts=max_attempts,
            idempotency_key=idempotency_key, metadata=pairs(metadata, "--metadata"),
        )  # fmt: skip
        if not follow:
            note_unserved(client, job.info().queue)
            print_json({"id": job.id}) if as_json else write(job.id)
            return
        wait_for(client, [job], wait_s)
        _show(job, as_json)


def _params(param: list[str] | None, epochs: int | None, patience: int | None) -> dict[str, Any]:
    given = pairs(param, "--param") or {}
    for name, value in _given({"epochs": epochs, "patience": patience}).items():
        if name in given:
            raise InvalidInput(f"--{name} and --param {name}=… are the same; give one of them")
        given[name] = value
    return given


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _show(job: TrainingJob, as_json: bool) -> None:
    info = job.info()
    succeeded = info.state is JobState.SUCCEEDED
    if as_json:
        print_json(_as_json(job, info))
    elif succeeded:
        version = job.result(ARRIVES_S)
        print_fields({"model": version.ref} | run_fields(job.run) | {"job": job.id})
    if not info.state.final:
        raise ResultTimeout(f"job {job.id} is {info.state} and goes on: forebay jobs wait {job.id}")
    if not succeeded:
        if not as_json and info.state is not JobState.EXPIRED:
            say(f"forebay jobs retry {job.id} goes on from the last checkpoint")
        raise job.exception(ARRIVES_S) or JobFailed(f"job {job.id} {info.state}")


def _as_json(job: TrainingJob, info: JobInfo) -> dict[str, Any]:
    told: dict[str, Any] = {"id": job.id, "state": info.state, "error": info.error}
    if info.state is JobState.SUCCEEDED:
        run = job.run
        told |= {
            "model": job.result(ARRIVES_S).ref,
            "metrics": run.metrics,
            "promoted": run.promoted,
            "verdict": run.verdict,
        }
    return told
