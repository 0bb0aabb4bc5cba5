"""The two files that a batch makes: what was answered, and what was not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from types import TracebackType
from typing import Any, BinaryIO, Self

import msgspec

from forebay.api.errors import Dialect, error_response
from forebay.api.openai.batch_input import parse_line
from forebay.contract.errors import ForebayError, JobCanceled, JobExpired, Transient
from forebay.contract.job import new_ids
from forebay.producer.handles.job import Job
from forebay.producer.session import Session
from forebay.storage.files import FileRecord
from forebay.storage.jobs.records import Outcome
from forebay.storage.request_batches import LineError, RequestBatch

PURPOSE = "batch_output"
EXPIRED = LineError("batch_expired", "the request was not run within the batch's completion_window")
CANCELLED = LineError("batch_cancelled", "the request was not run before the batch was canceled")
JOB_CANCELED = LineError("job_canceled", "the request's job was canceled")
JOB_DELETED = LineError("job_deleted", "the request's job is not in the ledger any more, and its result is lost")


class BatchOutput:
    """Writes a line for each request of a batch, in the order of its file; neither file is ever whole in memory.

    `past` says that the batch's time is over.
    """

    def __init__(self, session: Session, batch: RequestBatch, past: bool) -> None:
        self._session, self._batch = session, batch
        stopped = CANCELLED if batch.cancelling_at is not None else EXPIRED if past else None
        self._without_job = stopped or next(iter(batch.errors), JOB_DELETED)
        self._canceled = stopped or JOB_CANCELED
        self._good, self._bad = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - closed at the end
        self.completed = self.failed = 0
        self.tokens: int | None = None
        self.output_tokens = 0
        self.expired = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._good.close()
        self._bad.close()

    def write(self, line: bytes, job_id: str | None, outcome: Outcome | None) -> None:
        """The answer to a line: its job's result or error, or why there is neither. Transient when it cannot be read now."""
        asked = parse_line(line)
        told = {
            "id": f"batch_req_{job_id or new_ids(1)[0]}",
            "custom_id": asked.custom_id,
            "response": None,
            "error": None,
        }
        if job_id is None:
            return self._write_unrun(told, self._without_job)
        if outcome is None:
            return self._write_unrun(told, self._canceled)
        job = Job(self._session, job_id)
        job.set_outcome(outcome)
        try:
            body = asked.request().answer(self._batch.model, job.result(0), job_id)
        except Transient:
            raise
        except JobCanceled:
            self._write_unrun(told, self._canceled)
        except JobExpired:
            self._write_unrun(told, EXPIRED)
        except ForebayError as error:
            response = error_response(error, Dialect.OPENAI, job_id)
            self._write_failed(told | {"response": _response(response.status_code, job_id, msgspec.Raw(response.body))})
        else:
            self._good.write(_line(told | {"response": _response(200, job_id, body)}))
            self.completed += 1
            if body["usage"] is not None:
                self.tokens = (self.tokens or 0) + body["usage"]["total_tokens"]
                self.output_tokens += body["usage"].get("completion_tokens", 0)

    def store(self, go_on: Callable[[], None]) -> tuple[FileRecord | None, FileRecord | None]:
        """Put both into the blob store: the files of answers and of errors, None for one without a line.

        `go_on` is called all the while.
        """
        good = self._stored(_Watched(self._good, go_on), "output") if self.completed else None
        return good, self._stored(_Watched(self._bad, go_on), "errors") if self.failed else None

    def _write_unrun(self, told: dict[str, Any], why: LineError) -> None:
        self.expired |= why is EXPIRED
        self._write_failed(told | {"error": {"code": why.code, "message": why.message}})

    def _write_failed(self, told: dict[str, Any]) -> None:
        self._bad.write(_line(told))
        self.failed += 1

    def _stored(self, file: Any, what: str) -> FileRecord:
        batch, now = self._batch, self._session.ledger.now()
        blob = self._session.blobs.put_stream(file)
        expires_at = None if batch.output_expires_s is None else now + batch.output_expires_s
        name = f"batch_{batch.id}_{what}.jsonl"
        return FileRecord(f"file-{new_ids(1)[0]}", batch.owner, name, PURPOSE, file.tell(), blob, now, expires_at)


class _Watched:
    """An open file that calls a function with each piece that is read: a slow store must not cost the lease."""

    def __init__(self, file: BinaryIO, go_on: Callable[[], None]) -> None:
        self._file, self._go_on = file, go_on
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        self._go_on()
        return self._file.read(size)


def _response(status: int, job_id: str, body: Any) -> dict[str, Any]:
    return {"status_code": status, "request_id": job_id, "body": body}


def _line(told: dict[str, Any]) -> bytes:
    return msgspec.json.encode(told) + b"\n"
