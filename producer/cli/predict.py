"""`forebay predict`: from an argument or a file to jobs, and from jobs to results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind
from forebay.contract.signature import BATCH_HINT
from forebay.producer.cli.commands import command, root, with_submit_options
from forebay.producer.cli.inputs import JobInputs, read_inputs
from forebay.producer.cli.options import Connect, Model, NoWait, Timeout, argument, countdown, option
from forebay.producer.cli.views.results import Output, check_output, print_ids, show_many, show_one, wait_for
from forebay.producer.client import Client
from forebay.producer.handles.job import Job
from forebay.producer.options import PredictOptions, SubmitOptions

INPUT_HELP = (
    "One sample as JSON, or as plain text for a model that takes one str or a prompt; '-' reads stdin. "
    'In inputs by name {"file": "cat.jpg"} stands for an image or a sound. '
    "Before an INPUT that starts with a minus write --."
)
FILE_HELP = (
    ".npy, .npz, .json, image, sound: one sample. .jsonl, .ndjson, .txt: one job per line; '-' reads these from stdin."
)


@command(
    root,
    "forebay predict minilm 'How warm is the sea in May?'",
    "forebay predict iris '[5.1, 3.5, 1.4, 0.2]' --timeout 30",
    "forebay predict smollm 'Why is the sky blue?'",
    "forebay predict digits@champion --file rows.npy --each -o out.npy",
    "forebay predict minilm --file questions.jsonl > answers.jsonl",
)
@with_submit_options(JobKind.PREDICT)
def predict(
    connect: Connect,
    as_json: bool,
    model: Model,
    input: Annotated[str | None, argument("INPUT", INPUT_HELP)] = None,
    file: Annotated[Path | None, option("FILE", FILE_HELP, "--file", "-f")] = None,
    each: Annotated[bool, typer.Option("--each", help="One job per row of the array or list.")] = False,
    batched: Annotated[bool, typer.Option("--batched", help="The input has a batch dimension; one job.")] = False,
    output: Output = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    *,
    options: SubmitOptions,
) -> None:
    """Run a model on one input or many, and print the results.

    One result is printed as text or JSON, many as one line of JSON per job, in order. Exit status 1 when a job fails.
    """
    check_output(output)
    if no_wait and output is not None:
        raise InvalidInput("--output needs the results and --no-wait does not wait for them; give one of them")
    left, client = countdown(timeout), connect()
    version = client.models.get(model)
    inputs = read_inputs(version.signature, input, file, each=each, batched=batched)
    jobs = _submit(client, version.ref, inputs, PredictOptions(**options, batched=batched, usage=False, stream=False))
    if no_wait:
        print_ids(jobs, as_json)
        return
    wait_for(client, jobs, left())
    if inputs.many:
        show_many(jobs, output, as_json, version.signature.by_class)
    else:
        show_one(jobs[0], output, as_json, version.signature.by_class)


def _submit(client: Client, ref: str, inputs: JobInputs, options: PredictOptions) -> list[Job]:
    if not inputs.values:
        raise InvalidInput("the input holds no rows; nothing was submitted")
    try:
        if inputs.many:
            return client.predict_many(ref, inputs.values, **options)
        return [client.predict(ref, inputs.values[0], **options)]
    except InvalidInput as error:
        raise type(error)(
            str(error).replace(BATCH_HINT, "if these are several rows, give --each or --batched")
        ) from error
