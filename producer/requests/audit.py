"""Auditing a batch: the input, the ledger, the manifest and the files must tell the same."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec.structs import asdict

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind, JobState
from forebay.contract.references import check_job_id
from forebay.contract.requests.batch import BatchRequest, Piece
from forebay.contract.requests.coverage import coverage_faults
from forebay.contract.requests.manifest import Manifest
from forebay.contract.requests.request import decode
from forebay.contract.requests.shards import ShardOutcome, WrittenFile
from forebay.datasets import require_pyarrow
from forebay.producer.session import Session, load_payload

if TYPE_CHECKING:
    from forebay.datasets.writing.folder import OutputFolder

READ_BYTES = 1 << 20
LONGEST_FIELD = 1 << 31

FinishedShard: TypeAlias = tuple[str, tuple[Piece, ...], ShardOutcome]


def audit(session: Session, id: str) -> dict[str, Any]:
    """Rows by the input, the ledger, the manifest and the files, and `faults`: what does not agree, [] when all is well."""
    require_pyarrow()
    from forebay.datasets.writing.folder import OutputFolder

    info = session.jobs.queries.get(check_job_id(id))
    if info.kind is not JobKind.BATCH:
        raise InvalidInput(f"job {id} is a {info.kind} job; only batches have files to audit")
    request = decode(
        load_payload(session, f"the request of batch {id}", *session.batches.queries.request(id)), BatchRequest
    )
    folder, totals = OutputFolder(request.output), session.batches.queries.totals(id)
    shards = list(session.batches.queries.outcomes(id))
    files = [file for _, _, outcome in shards for file in outcome.files]
    good, bad = (sum(f.rows for f in files if f.name.startswith("_") is errors) for errors in (False, True))
    faults = list(_file_faults(folder, files))
    rows, input_faults = _input(request, shards)
    faults += input_faults
    manifest = folder.manifest()
    if info.state is JobState.SUCCEEDED:
        faults += _coverage_faults(session, id, request)
        if rows is not None and rows != good + bad:
            faults.append(f"the input holds {rows} rows, and {good + bad} have results or errors")
        if (good, bad) != (totals.done, totals.failed):
            faults.append(
                f"the shards' files hold {good} and {bad} rows, the ledger counts {totals.done} and {totals.failed}"
            )
        faults += _manifest_faults(manifest, good, bad, files)
    elif manifest is not None:  # it was canceled when its last shard had ended
        faults += _manifest_faults(manifest, good, bad, files)
    return {
        "batch": id, "state": info.state, "output": folder.url, "files": len(files), "input": rows,
        "ledger": {"completed": totals.done, "failed": totals.failed}, "manifest": asdict(manifest.counts) if manifest else None,
        "in_files": {"completed": good, "failed": bad}, "faults": faults,
    }  # fmt: skip


def _coverage_faults(session: Session, id: str, request: BatchRequest) -> Iterator[str]:
    """Which rows of the input are in two parts, or in none."""
    from forebay.datasets.formats.source import get_source

    queries, by_row = session.batches.queries, get_source(request.format).locator == "row"
    files = [file.path for file in request.files]
    return coverage_faults(queries.planned_pieces(id), queries.covered_parts(id), files, by_row=by_row)


def _file_faults(folder: OutputFolder, files: list[WrittenFile]) -> Iterator[str]:
    """What is missing, changed or too much among the files, each read once."""
    there = folder.names()
    for name in sorted(there - {file.name for file in files}):
        yield f"{name}: no shard of this batch has written it"
    for file in files:
        if file.name not in there:
            yield f"{file.name}: it is missing"
            continue
        digest = hashlib.sha256()
        with folder.open(file.name) as handle:
            while data := handle.read(READ_BYTES):
                digest.update(data)
        rows = _rows_in(folder, file.name)
        held = "it cannot be read" if rows is None else f"it holds {rows} rows"
        if digest.hexdigest() != file.sha256:
            yield f"{file.name}: its content is not what was written; {held}, {file.rows} were written"
        elif rows != file.rows:
            yield f"{file.name}: {held}, the ledger says {file.rows}"


def _rows_in(folder: OutputFolder, name: str) -> int | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with folder.open(name) as handle:
            if name.endswith(".parquet"):
                return int(pq.ParquetFile(handle).metadata.num_rows)
            if name.endswith(".csv"):
                csv.field_size_limit(LONGEST_FIELD)
                with io.TextIOWrapper(handle, encoding="utf-8", newline="") as text:
                    return sum(1 for _ in csv.reader(text)) - 1  # the header
            return sum(1 for _ in handle)
    except (pa.ArrowException, OSError, ValueError, csv.Error):
        return None


def _input(request: BatchRequest, shards: Sequence[FinishedShard]) -> tuple[int | None, list[str]]:
    """How many rows the input holds, if it can be counted; and which shards wrote other rows than theirs holds."""
    from forebay.datasets.planning.counting import count_rows

    faults: list[str] = []
    ranges: dict[int, list[tuple[int, int, int]]] = {number: [] for number in range(len(request.files))}
    for shard, (_, pieces, _) in enumerate(shards):
        for piece in pieces:
            ranges[piece.file].append((piece.first, piece.last, shard))
    total = 0
    found = [0] * len(shards)
    for number, file in enumerate(request.files):
        covered = sorted(ranges[number])
        try:
            rows, counts = count_rows(request.format, file, [(first, last) for first, last, _ in covered])
        except (InvalidInput, OSError) as error:
            faults.append(f"the input cannot be counted: {error}")
            return None, faults
        total += rows
        for (_, _, shard), count in zip(covered, counts, strict=True):
            found[shard] += count
    for (part, _, outcome), count in zip(shards, found, strict=True):
        if count != outcome.rows + outcome.failed:
            faults.append(
                f"{part}: its input holds {count} rows, and {outcome.rows + outcome.failed} have results or errors"
            )
    return total, faults


def _manifest_faults(manifest: Manifest | None, good: int, bad: int, files: list[WrittenFile]) -> Iterator[str]:
    if manifest is None:
        yield "there is no manifest though the batch has succeeded"
        return
    counts = manifest.counts
    if (counts.completed, counts.failed) != (good, bad):
        yield f"the manifest counts {counts.completed} and {counts.failed} rows, the ledger {good} and {bad}"
    listed = {file.name: file.sha256 for file in (*manifest.parts, *manifest.errors)}
    if listed != {file.name: file.sha256 for file in files}:
        yield "the manifest does not list the files that the ledger knows"
