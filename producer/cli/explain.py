"""`forebay explain`: what each part of an input adds to what a model gives for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.requests.explain import EXPLANATION, ExplainRequest
from forebay.producer.cli.commands import job_command, request_options
from forebay.producer.cli.inputs import read_inputs
from forebay.producer.cli.options import Model, argument, json_option, option
from forebay.producer.cli.output import print_json_line, print_line, print_note
from forebay.producer.cli.predict import FILE_HELP, INPUT_HELP
from forebay.producer.cli.views.results import ARRIVES_S
from forebay.producer.client import Client
from forebay.producer.handles.job import Job
from forebay.producer.options import SubmitOptions


def _show(job: Job, info: JobInfo) -> None:
    if info.state is not JobState.SUCCEEDED:
        return
    result = job.result(ARRIVES_S)
    about = result[EXPLANATION] if isinstance(result, Mapping) else None
    if not isinstance(about, Mapping) or isinstance(about["score"], list):  # of a batch
        print_json_line(result)
        return
    what = f"{about['output']} of {about['target']}" if "target" in about else about["output"]
    print_note(f"{what} is {about['score']:.4g}; by {about['method']}, what each part adds:")
    for name, value in sorted(_parts(result), key=lambda part: -abs(part[1])):
        print_line(f"{value:+.4g}\t{name}")
    if about.get("warning"):
        print_note(f"not exact: {about['warning']}")


def _parts(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in result.items():
        if isinstance(value, list):
            yield from ((word, number) for word, number in value)
        elif name != EXPLANATION:
            for place, number in np.ndenumerate(value):
                yield f"{name}{list(place) if place else ''}", float(number)


@job_command(
    JobKind.EXPLAIN,
    "forebay explain iris '[5.1, 3.5, 1.4, 0.2]' --target setosa",
    "forebay explain houses --file house.json --method feature-ablation",
    "forebay explain digits --file seven.npy --steps 200 --json",
    show=_show,
)
@request_options("further", ExplainRequest, without=("method", "target", "baseline"))
def explain(
    client: Client,
    model: Model,
    further: dict[str, Any],
    options: SubmitOptions,
    input: Annotated[str | None, argument("INPUT", INPUT_HELP)] = None,
    file: Annotated[Path | None, option("FILE", FILE_HELP, "--file", "-f")] = None,
    batched: Annotated[bool, typer.Option("--batched", help="The input has a batch dimension; one job.")] = False,
    method: Annotated[
        str | None,
        option("METHOD", "integrated-gradients, saliency, occlusion, feature-ablation.", default="what the model can"),
    ] = None,
    target: Annotated[str | None, option("CLASS", "A class, or its number.", default="the most probable")] = None,
    baseline: Annotated[str | None, option("JSON", "What it is held against: a number, a sample, or @file.")] = None,
) -> Job:
    """Explain a prediction: what each number, column, word or part of an image adds to the output.

    Prints the parts, those that count most first. Exit status 1 when the job fails.
    """
    version = client.models.get(model)
    inputs = read_inputs(version.signature, input, file, each=False, batched=batched)
    held = json_option(baseline, "--baseline")
    given = int(target) if target is not None and target.isdecimal() and target not in version.classes else target
    value = inputs.values if inputs.many else inputs.values[0]
    return client.explain(
        version.ref,
        value,
        method=method,
        target=given,
        baseline=held,
        batched=batched or inputs.many,
        **further,
        **options,
    )
