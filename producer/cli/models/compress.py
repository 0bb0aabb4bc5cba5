"""`forebay models compress`: a version of which the weights take less room."""

from __future__ import annotations

from typing import Annotated, Any

from forebay.contract.job import JobKind
from forebay.contract.requests.versions.compress import CompressRequest
from forebay.producer.cli.commands import job_command, request_options
from forebay.producer.cli.models.convert import show_derived
from forebay.producer.cli.models.group import models_app
from forebay.producer.cli.options import Columns, Format, Model, columns_option, option
from forebay.producer.client import Client
from forebay.producer.handles.kinds import VersionJob
from forebay.producer.options import SubmitOptions


@job_command(
    JobKind.COMPRESS,
    "forebay models compress digits@champion --method int8-weights",
    "forebay models compress digits --method prune:0.5 --data held-out.parquet --target label --max-loss 0.02 --alias small",
    show=show_derived,
    app=models_app,
)
@request_options("asked", CompressRequest, without=("evaluation", "replaces"))
def compress(
    client: Client,
    ref: Model,
    asked: dict[str, Any],
    options: SubmitOptions,
    data: Annotated[list[str] | None, option("DATA", "Rows to evaluate both versions on; may be repeated.")] = None,
    target: Annotated[str | None, option("COLUMN", "The column with what is true.")] = None,
    columns: Columns = None,
    format: Format = None,
) -> VersionJob:
    """Make a version of which the weights take less room, and measure both. Exit status 1 when it loses too much."""
    read: dict[str, Any] = {"target": target, "columns": columns_option(columns), "format": format}
    return client.models.compress(ref, dataset=data, **read, **asked, **options)
