"""`forebay tune`: the parameters of a recipe are searched, and the best trial becomes a version."""

from __future__ import annotations

from typing import Annotated, Any

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.references import shown
from forebay.contract.requests.recipes import LoopParams
from forebay.contract.requests.training import TrainRequest
from forebay.contract.requests.tuning import TuneRequest
from forebay.producer.cli.commands import ResourceOptions, job_command, request_options
from forebay.producer.cli.options import Format, argument, json_or_text, option
from forebay.producer.cli.output import print_fields, print_json
from forebay.producer.cli.train import NOT_OPTIONS, given_params
from forebay.producer.cli.views.results import ARRIVES_S
from forebay.producer.cli.views.tuning import print_tuning, tuning_as_json
from forebay.producer.client import Client
from forebay.producer.handles.kinds import TuningJob
from forebay.producer.options import SubmitOptions


def _print(job: TuningJob, info: JobInfo) -> None:
    if info.state is JobState.SUCCEEDED:
        print_fields({"model": job.result(ARRIVES_S).ref, "job": job.id})
    print_tuning(job)


def _print_json(job: TuningJob, info: JobInfo) -> None:
    told: dict[str, Any] = {"id": job.id, "state": info.state, "error": info.error, **tuning_as_json(job)}
    if info.state is JobState.SUCCEEDED:
        version = job.result(ARRIVES_S)
        told |= {"model": version.ref, "metrics": version.metadata["metrics"]}
    print_json(told)


@job_command(
    JobKind.TUNE,
    "forebay tune digits --recipe image-classifier --dataset digits.parquet --target label --space lr=1e-4..1e-1:log "
    "--space 'channels=16,32|32,64' --trials 20 --pruner median --alias champion",
    "forebay tune houses --recipe regressor --dataset houses.csv --target price --space hidden=32,64 --space lr=0.001,0.01 "
    "--sampler grid",
    show=_print,
    show_json=_print_json,
)
@request_options("request", TrainRequest, without=NOT_OPTIONS)
@request_options("tuning", TuneRequest, without=("train", "space"))
@request_options("loop", LoopParams, only=("epochs", "early_stopping_epochs"))
@request_options("resources", ResourceOptions)
def tune(
    client: Client,
    model: Annotated[str, argument("MODEL", "The name whose next version is made.")],
    dataset: Annotated[list[str], option("DATA", "A path, glob (in quotes), folder or URL; may be repeated.")],
    space: Annotated[
        list[str],
        option("NAME=VALUES", "LOW..HIGH, LOW..HIGH:log, LOW..HIGH:STEP, A,B,C or 'A,B|C'; may be repeated."),
    ],
    request: dict[str, Any],
    tuning: dict[str, Any],
    loop: dict[str, Any],
    resources: dict[str, Any],
    options: SubmitOptions,
    param: Annotated[list[str] | None, option("NAME=VALUE", "One that is not searched; may be repeated.")] = None,
    format: Format = None,
) -> TuningJob:
    """Search the parameters with which a model is trained best: each trial is a training job, the best becomes the next version.

    Ctrl-C leaves it running; `forebay jobs show ID` lists its trials, and `forebay jobs retry ID` runs those that are missing.
    Exit status 1 when it fails.
    """
    return client.tune(
        model, dataset=dataset, space=read_space(space), format=format, params=given_params(param, loop), resources=resources,
        **request, **tuning, **options,
    )  # fmt: skip


def read_space(texts: list[str]) -> dict[str, Any]:
    """`--space`, repeated: a range or a list of values for each name."""
    space: dict[str, Any] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name or not values:
            raise InvalidInput(f"--space {shown(text)} is not NAME=VALUES, such as lr=1e-4..1e-1:log or hidden=32,64")
        if name in space:
            raise InvalidInput(f"--space gives {shown(name)} twice")
        listed = values.split("|" if "|" in values else ",")
        space[name] = _range(text, values) if ".." in values else [json_or_text(value.strip()) for value in listed]
    return space


def _range(text: str, values: str) -> dict[str, Any]:
    bounds, _, more = values.partition(":")
    low, _, high = bounds.partition("..")
    try:
        ends = {"low": _number(low), "high": _number(high)}
        return ends | ({"log": True} if more == "log" else {"step": _number(more)} if more else {})
    except ValueError:
        raise InvalidInput(
            f"--space {shown(text)}: a range is LOW..HIGH, LOW..HIGH:log or LOW..HIGH:STEP, of numbers"
        ) from None


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)
