"""What a batch goes through: its file is checked, each line becomes a job, and their results become files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import structlog

from forebay.api.openai.batch_input import LineCheck, LineTooLong, batch_options, lines, parse_line
from forebay.api.openai.batch_output import BatchOutput
from forebay.contract.errors import BlobCorrupt, BlobMissing, ModelNotFound, NoQueueFits
from forebay.contract.job import JobKind, JobState
from forebay.contract.model import parse_model
from forebay.producer.session import Session
from forebay.producer.submit import Submitter
from forebay.storage.files import FileRecord
from forebay.storage.request_batches import BatchStatus, LineError, RequestBatch, RequestBatches, StoredBatch

log = structlog.get_logger()

CHUNK_LINES, CHUNK_BYTES = 500, 4 * 2**20  # that are submitted, and looked up, in one go
TURN_S = 1.0  # of submitting, before the next batch has its turn
CANCEL_AT_ONCE = 1000
GRACE_S = 600.0  # for what runs when its batch is canceled or its time is over; afterwards the batch ends without it

Line = tuple[int, bytes]


class HeldBatch:
    """A batch that this server holds. `renew` and `save` raise BatchTaken once another does, or it was canceled."""

    def __init__(self, store: RequestBatches, stored: StoredBatch, holder: str, lease_s: float) -> None:
        self._store, self._stored, self._holder, self._lease_s = store, stored, holder, lease_s
        self._renew_at = time.monotonic() + lease_s / 4

    @property
    def batch(self) -> RequestBatch:
        return self._stored.batch

    def renew(self) -> None:
        """Hold it on; called often."""
        if time.monotonic() >= self._renew_at:
            self._store.renew(self._stored, self._holder, self._lease_s)
            self._renew_at = time.monotonic() + self._lease_s / 4

    def save(self, files: list[FileRecord] | None = None, **changes: Any) -> None:
        """Write changes, and the files that come with them."""
        batch = msgspec.structs.replace(self.batch, **changes)
        self._store.save(batch, self._stored.step, self._holder, files or [])
        self._stored = StoredBatch(batch, self._stored.step + 1)
        log.debug("request_batch", batch=batch.id, status=str(batch.status), line=batch.next_line)


class BatchSteps:
    """Takes a batch on, a bounded piece of work at a time. `check_stop` raises when the server is being stopped."""

    def __init__(self, session: Session, store: RequestBatches, check_stop: Callable[[], None]) -> None:
        self._session, self._store, self._check_stop = session, store, check_stop
        self._line_limit = session.settings.api_max_body_bytes
        self._inputs: dict[str, _Input] = {}

    def forget(self, id: str) -> None:
        """Read the batch's file anew, should it come again."""
        self._inputs.pop(id, None)

    def advance(self, held: HeldBatch) -> bool:
        """Do what is next; False when there is nothing to do but to wait."""
        try:
            return self._advance(held)
        except (BlobMissing, BlobCorrupt, LineTooLong) as error:
            self._fail(
                held, [LineError("invalid_file", f"the file cannot be read: {error}", getattr(error, "number", None))]
            )
            return True

    def _advance(self, held: HeldBatch) -> bool:
        batch, now = held.batch, self._session.ledger.now()
        if batch.status is BatchStatus.VALIDATING:
            self._validate(held)
            return True
        if batch.status is BatchStatus.FINALIZING:
            queued_again = now < batch.expires_at and self._store.open_jobs(batch.id, "", 1)
            return False if queued_again else self._finalize(held)
        over = now >= batch.expires_at or batch.status is BatchStatus.CANCELLING
        if not over and not batch.submitted:
            self._submit(held)
            return True
        return self._await_jobs(held, over, now)

    def _validate(self, held: HeldBatch) -> None:
        """One pass over the file, which is read whole and so is known not to be damaged."""
        batch, settings = held.batch, self._session.settings
        check = LineCheck(Submitter(self._session), batch.endpoint, settings.api_max_batch_lines)
        for number, line in lines(self._session.blobs.chunks(batch.input_blob), self._line_limit):
            check.check(number, line)
            self._go_on(held)
            if check.over:
                break
        check.end()
        if check.errors:
            self._fail(held, check.errors)
        else:
            at = self._session.ledger.now()
            held.save(status=BatchStatus.IN_PROGRESS, in_progress_at=at, total=check.total, model=check.model)

    def _submit(self, held: HeldBatch) -> None:
        """Jobs for further lines. A line's key makes the same job of it, however often it is submitted."""
        batch, until = held.batch, time.monotonic() + TURN_S
        submitter = Submitter(self._session, batch.submitted_by, batch.id)
        remaining = batch.expires_at - self._session.ledger.now()
        if remaining <= 0:
            return
        try:
            version = self._session.registry.resolve(parse_model(batch.model))
            options = submitter.check(JobKind.PREDICT, version, batch_options(batch.endpoint) | {"deadline": remaining})
        except (ModelNotFound, NoQueueFits) as error:  # gone since the file was checked: what has no job fails
            held.save(submitted=True, errors=(LineError("model_not_found", str(error)),))
            return
        most = self._session.settings.queue(options.queue).max_queue_size or CHUNK_LINES
        given = self._inputs.setdefault(batch.id, _Input(self._lines(batch, batch.next_line)))
        while time.monotonic() < until:
            self._go_on(held)
            chunk = given.next_lines(min(CHUNK_LINES, most))
            if not chunk:
                self.forget(batch.id)
                held.save(submitted=True)
                return
            inputs = {_key(batch, number): parse_line(line).request().inputs(version) for number, line in chunk}
            submitter.submit_by_key(options, inputs)
            held.save(next_line=chunk[-1][0])
            given.done()

    def _await_jobs(self, held: HeldBatch, over: bool, now: float) -> bool:
        batch = held.batch
        if over and batch.in_progress_at is None:  # canceled before its file was checked
            self._end(held, [])
            return True
        counts = self._store.counts(batch.id)
        waiting = counts.get(JobState.QUEUED, 0) + counts.get(JobState.RUNNING, 0)
        if over and waiting:
            self.forget(batch.id)
            self._cancel_jobs(held)
            since = batch.cancelling_at if batch.cancelling_at is not None else batch.expires_at
            if now < since + GRACE_S:
                return False
        elif waiting:
            return False
        if batch.status is BatchStatus.CANCELLING:
            return self._finalize(held)
        held.save(status=BatchStatus.FINALIZING, finalizing_at=now)
        return True

    def _cancel_jobs(self, held: HeldBatch) -> None:
        """What waits ends at once; what runs is asked to stop."""
        after = ""
        while ids := self._store.open_jobs(held.batch.id, after, CANCEL_AT_ONCE):
            self._go_on(held)
            self._session.jobs.cancel(ids)
            after = ids[-1]

    def _finalize(self, held: HeldBatch) -> bool:
        """One pass over the file and its jobs' outcomes; False when a job has been queued again meanwhile."""
        batch, given = held.batch, _Input(self._lines(held.batch, 0))
        past = self._session.ledger.now() >= batch.expires_at
        with BatchOutput(self._session, batch, past) as output:
            while chunk := given.next_lines(CHUNK_LINES):
                found = self._store.outcomes(batch.id, [_key(batch, number) for number, _ in chunk])
                for number, line in chunk:
                    self._go_on(held)
                    id, outcome = found.get(_key(batch, number), (None, None))
                    if id is not None and outcome is None and not past and batch.cancelling_at is None:
                        return False
                    output.write(line, id, outcome)
                given.done()
            good, bad = output.store(lambda: self._go_on(held))
            self._end(
                held, [file for file in (good, bad) if file], expired=output.expired, completed=output.completed,
                failed=output.failed, tokens=output.tokens,
                output_tokens=output.output_tokens, output_file_id=good and good.id, error_file_id=bad and bad.id,
            )  # fmt: skip
        return True

    def _end(self, held: HeldBatch, files: list[FileRecord], *, expired: bool = False, **changes: Any) -> None:
        now = self._session.ledger.now()
        if held.batch.cancelling_at is not None:
            held.save(files, status=BatchStatus.CANCELLED, cancelled_at=now, **changes)
        elif expired:
            held.save(files, status=BatchStatus.EXPIRED, expired_at=now, **changes)
        else:
            held.save(files, status=BatchStatus.COMPLETED, completed_at=now, **changes)
        log.info("request_batch_ended", batch=held.batch.id, status=str(held.batch.status))

    def _fail(self, held: HeldBatch, errors: list[LineError]) -> None:
        self.forget(held.batch.id)
        self._cancel_jobs(held)
        held.save(status=BatchStatus.FAILED, failed_at=self._session.ledger.now(), errors=tuple(errors))
        log.info("request_batch_ended", batch=held.batch.id, status="failed", error=errors[0].message)

    def _lines(self, batch: RequestBatch, after: int) -> Iterator[Line]:
        found = lines(self._session.blobs.chunks(batch.input_blob), self._line_limit)
        return ((number, line) for number, line in found if number > after)

    def _go_on(self, held: HeldBatch) -> None:
        self._check_stop()
        held.renew()


class _Input:
    """A file's lines in pieces; a piece comes again until it is done."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._chunk: list[Line] = []

    def next_lines(self, most: int) -> list[Line]:
        size = 0
        if not self._chunk:
            for number, line in self._lines:
                self._chunk.append((number, line))
                size += len(line)
                if len(self._chunk) >= most or size >= CHUNK_BYTES:
                    break
        return self._chunk

    def done(self) -> None:
        self._chunk = []


def _key(batch: RequestBatch, number: int) -> str:
    """The idempotency key of the job of a line."""
    return f"{batch.id}:{number}"
