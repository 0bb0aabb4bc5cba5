"""`forebay models compress`: a version of which the weights take less room."""

from __future__ import annotations

from typing import Annotated, Any

from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.queues import format_bytes
from forebay.contract.requests.compress import CompressRequest
from forebay.producer.cli.commands import job_command, request_options
from forebay.producer.cli.models.group import models_app
from forebay.producer.cli.options import Columns, Format, Model, columns_option, option
from forebay.producer.cli.output import print_fields
from forebay.producer.cli.views.results import ARRIVES_S
from forebay.producer.client import Client
from forebay.producer.handles.kinds import VersionJob
from forebay.producer.options import SubmitOptions


def _show(job: VersionJob, info: JobInfo) -> None:
    if info.state is not JobState.SUCCEEDED:
        return
    made = job.result(ARRIVES_S)
    lineage = made.metadata["lineage"]
    fields: dict[str, Any] = {"made": made.ref, "from": lineage["parent"], "method": lineage["method"]}
    for name, title in (("bytes", "size"), ("memory_bytes", "memory")):
        fields[title] = " → ".join(format_bytes(int(lineage[name][when])) for when in ("before", "after"))
    for name, title in (("ms_per_row", "one row"), ("ms_per_batch", f"{made.max_batch_size} rows")):
        fields[title] = " → ".join(f"{lineage[name][when]:.3g} ms" for when in ("before", "after"))
    if (metric := lineage.get("metric")) is not None:
        fields[metric["name"]] = f"{metric['before']:.6g} → {metric['after']:.6g} on {metric['rows']:,} rows"
    apart = {name: value for name, value in lineage["difference"].items() if value is not None}
    fields["outputs"] = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in apart.items())
    print_fields(fields)


@job_command(
    JobKind.COMPRESS,
    "forebay models compress digits@champion --method int8-weights",
    "forebay models compress digits --method prune:0.5 --data held-out.parquet --target label --max-loss 0.02 --alias small",
    show=_show,
    app=models_app,
)
@request_options("asked", CompressRequest, without=("evaluation",))
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
