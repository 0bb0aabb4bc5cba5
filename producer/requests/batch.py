"""The request of a batch: which files, which columns, whether they fit the model, and whether the output folder is free.

All that can be refused is refused here, before anything is stored. Workers cut the files into shards, so that a submit is
quick however many files there are: those it has no time to look at are checked when their shards are planned.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from msgspec.structs import replace

from forebay.contract.errors import ForebayError, InvalidInput, JobNotFound, OutcomeUnknown
from forebay.contract.job import JobState, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.references import shown
from forebay.contract.requests.batch import ARROW, CSV, JSONL, MEDIA, OPENAI, BatchRequest, InputFile
from forebay.contract.requests.fields import check
from forebay.datasets.columns import output_column
from forebay.datasets.formats.files import absolute
from forebay.datasets.formats.media import PATH
from forebay.datasets.formats.source import get_source
from forebay.datasets.planning.checking import Named, check_file, check_outputs, check_rows, kept_types, name_columns
from forebay.datasets.planning.schema import KeptTypes
from forebay.datasets.writing.folder import OutputFolder
from forebay.datasets.writing.part_files import check_csv
from forebay.producer import explanations
from forebay.producer.handles.kinds import BatchJob, open_handle
from forebay.producer.options import ResolvedOptions
from forebay.producer.requests.files import DataSet, find_dataset, first_with_rows
from forebay.producer.session import Session
from forebay.producer.submit import Submitter
from forebay.storage.jobs.views import JobViews

PATH_SHOWN = 200
CHECK_S = 1.5  # for looking into the files at submit


def make_request(
    model: ModelVersion,
    input: DataSet,
    output: str | Path,
    *,
    columns: Named = None,
    keep: str | Sequence[str] | None = None,
    format: str | None = None,
    explain: str | Mapping[str, Any] | None = None,
    **limits: Any,
) -> BatchRequest:
    """The request, checked against the files and the model's signature; InvalidInput says what to change.

    `explain` is a method, or fields of ExplainRequest; `limits` are
    BatchRequest's `shard_rows`, `max_errors`, `max_error_share` and `output_format`.
    """
    kept = (keep,) if isinstance(keep, str) else tuple(keep or ())
    files, format = _files(input, format)
    file, sample = first_with_rows(files, format)
    if format in MEDIA and not kept:
        kept = (PATH,)
    if format == OPENAI and kept:
        raise InvalidInput("keep: a file in OpenAI's form has its custom_id, and its results carry it; leave keep out")
    if format == OPENAI and limits.get("output_format") is not None:
        raise InvalidInput("output_format: results of a file in OpenAI's form have its form; leave output_format out")
    if format == OPENAI and explain is not None:
        raise InvalidInput("explain: a file in OpenAI's form asks for text, which is not explained; leave explain out")
    asked = {"method": explain} if isinstance(explain, str) else explain
    explaining = None if asked is None else explanations.make_request(model, asked)
    named = name_columns(columns, model.signature, sample.types, format)
    request = check(
        limits
        | {
            "files": tuple(files), "output": absolute(output), "format": format, "columns": named, "keep": kept,
            "row_bytes": sample.row_bytes, "explain": explaining,
        },
        BatchRequest,
    )  # fmt: skip
    outputs = request.signature(model.signature)
    check_outputs(request, outputs)
    _check_files(request, model, file)
    if request.output_format == CSV:
        check_csv(pa.schema([*map(output_column, outputs.outputs or ())]))
    rows = check_rows(request, model.signature, file)
    return replace(request, keep_types=kept_types(rows, kept)) if format in (JSONL, CSV) else request


def _files(input: DataSet, format: str | None) -> tuple[list[InputFile], str]:
    files, format = find_dataset(input, format, "give one batch for each")
    if format == JSONL and _is_openai(files[0]):
        format = OPENAI
    return files, format


def _is_openai(file: InputFile) -> bool:
    """Whether the lines are requests in the form of OpenAI's batch API, which nothing else looks like."""
    types = get_source(JSONL).sample(file).types
    return {"custom_id", "method", "url", "body"} <= set(types)


def _check_files(request: BatchRequest, model: ModelVersion, first: InputFile) -> None:
    """The first, the last, and as many others as there is time for; the rest is checked when its shards are planned."""
    until, kept = time.monotonic() + CHECK_S, KeptTypes(request.keep)
    kept.add(first, check_file(request, model.signature, first))
    if request.format in MEDIA or (request.format == ARROW and not request.keep):
        return
    for file in [request.files[-1], *request.files]:
        kept.add(file, check_file(request, model.signature, file))
        if time.monotonic() > until:
            return


def submit(session: Session, submitter: Submitter, options: ResolvedOptions, request: BatchRequest) -> BatchJob:
    """Make the batch durable and send it; or resume the batch that has the output folder, when it is the same request."""
    [id] = new_ids(1)
    folder, fingerprint = OutputFolder(request.output), request.fingerprint(options.model.ref)
    marker = folder.claim(id, fingerprint)
    if marker is not None:
        known = _resume(session, marker, options, request)
        if known is not None:
            return known
        folder.take_over(id, fingerprint)
    try:
        return submitter.submit_request(BatchJob, options, request, id)
    except OutcomeUnknown:  # the batch may be there, and then the folder is its own
        raise
    except ForebayError:
        folder.release(id)
        raise


def _resume(
    session: Session, marker: Mapping[str, str], options: ResolvedOptions, request: BatchRequest
) -> BatchJob | None:
    """The batch that has the folder, queued again if it had failed; None when there is no such batch (any more)."""
    id, where, model = marker["batch"], f"the output {shown(request.output)}", options.model.ref
    same = marker["request"] == request.fingerprint(model)
    another = f"{where} belongs to batch {id}, which asked for something else"
    try:
        job = open_handle(session, id)
        state = job.state
    except JobNotFound:
        if not same:  # it may be about to be submitted
            raise InvalidInput(f"{another}, and which the ledger does not know; name another folder") from None
        if OutputFolder(request.output).names():
            raise InvalidInput(f"{where} holds parts of batch {id}, which the ledger does not know; empty it") from None
        return None
    assert isinstance(job, BatchJob)  # noqa: S101 - only batches write such a marker
    if not same:
        differs = "; ".join(_differences(job.info().ref, job.request, model, request))
        raise InvalidInput(f"{another}: {differs}. Name another folder")
    key = options.idempotency_key
    if (
        state is JobState.SUCCEEDED
        and key is not None
        and JobViews(session.ledger).details(id, 0).idempotency_key == key
    ):
        return job
    if state is JobState.SUCCEEDED:
        raise InvalidInput(f"{where} holds what batch {id} made of the same request; name another folder")
    return job.retry() if state.final else job


def _differences(there_model: str, there: BatchRequest, asked_model: str, asked: BatchRequest) -> Iterator[str]:
    """What differs between the request that made a folder and this one, in the words a user writes them in."""
    if there_model != asked_model:
        yield f"model: {there_model} there, {asked_model} asked"
    if there.files != asked.files:
        yield f"input: {_files_differ(there.files, asked.files)}"
    for name in asked.__struct_fields__:
        made, wanted = getattr(there, name), getattr(asked, name)
        if made != wanted and name not in {"files", "output", *asked.ESTIMATES}:
            yield f"{name}: {_written(made)} there, {_written(wanted)} asked"


def _files_differ(there: Sequence[InputFile], asked: Sequence[InputFile]) -> str:
    sizes, wanted = ({file.path: file.size for file in files} for files in (there, asked))
    for path in wanted.keys() & sizes.keys():
        if sizes[path] != wanted[path]:
            return f"{shown(path, PATH_SHOWN)} had {sizes[path]:,} bytes, has {wanted[path]:,} now"
    if sizes.keys() == wanted.keys():
        return "the same files in another order"
    only = [next((path for path in a if path not in b), None) for a, b in ((sizes, wanted), (wanted, sizes))]
    return ", ".join(
        f"{len(files)} file{'' if len(files) == 1 else 's'}{f', with {shown(path, PATH_SHOWN)},' if path else ''} {where}"
        for files, path, where in ((there, only[0], "there"), (asked, only[1], "asked"))
    )


def _written(value: Any) -> str:
    """A field of the request as a command's option would hold it."""
    if isinstance(value, Mapping):
        return " ".join(f"{shown(key)[1:-1]}={_written(item)}" for key, item in value.items())
    if isinstance(value, tuple):
        value = ",".join(map(str, value)) or None
    return "none" if value is None else shown(value).strip("'\"")
