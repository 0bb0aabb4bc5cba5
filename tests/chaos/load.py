"""What the client does while things break: a few threads carry a plan out, and one retries what is to be retried.

A submit that raises LedgerUnavailable stored nothing, and is made again; one that raises OutcomeUnknown is looked up first.
Knows the client; what becomes of the jobs is the audit's.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from chaos import data
from chaos.audit import Accepted
from chaos.data import JobSpec
from chaos.model import Effect
from chaos.plan import Submission
from forebay.contract.errors import ForebayError, JobNotFound, LedgerUnavailable, OutcomeUnknown
from forebay.contract.job import JobKind, JobState
from forebay.producer.client import Client
from forebay.producer.handles.job import Job

log = structlog.get_logger()

THREADS = 4
LOOK_S = 0.5  # between two looks at what is to be retried
RETRY_S = 60.0  # for a ledger that does not answer
MAX_ATTEMPTS, ATTEMPTS_OF_A_KILLER = 10, 2
SHARD_ROWS = 500
TRAINED = "chaos-trained"  # the model that trainings make versions of


@dataclass
class Load:
    """Carries a plan out. `accepted` and the counters may be read when `join` has returned True."""

    client: Client
    models: dict[JobKind, str]  # what jobs of each kind but training run
    folder: Path  # for data sets and outputs
    plan: Sequence[Submission]
    accepted: list[Accepted] = field(default_factory=list)
    refused: int = 0  # submits that the ledger did not take, and that were tried again
    given_up: int = 0  # jobs whose submit was refused for a whole minute
    faults: list[str] = field(default_factory=list)  # what a client must never meet
    retried: Counter[str] = field(default_factory=Counter)  # by job; of those in `doubtful` it is not known
    doubtful: set[str] = field(default_factory=set)
    _retries: list[Job] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))  # 0 is warm-up's
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin, in threads of its own."""
        waiting: queue.SimpleQueue[Submission] = queue.SimpleQueue()
        for submission in self.plan:
            waiting.put(submission)
        begun = time.monotonic()
        self._threads = [
            threading.Thread(target=self._work, args=(waiting, begun), daemon=True) for _ in range(THREADS)
        ]
        for thread in [*self._threads, threading.Thread(target=self._retry, daemon=True)]:
            thread.start()

    def join(self, timeout: float) -> bool:
        """Whether all has been submitted after at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Submit and retry no more."""
        self._stop.set()

    @property
    def retrying(self) -> bool:
        """Whether jobs are still to be retried, once they have ended."""
        return bool(self._retries)

    def _retry(self) -> None:
        """Retry, once, what has failed or was canceled and is to be retried."""
        while not self._stop.wait(LOOK_S):
            for job in list(self._retries):
                try:
                    self._retry_one(job)
                except LedgerUnavailable as error:
                    log.info("retry_refused", job=job.id, error=str(error))
                except Exception as error:
                    log.exception("client_fault")
                    self._fault(error)
                    self._retries.remove(job)

    def _retry_one(self, job: Job) -> None:
        state = job.info().state
        if not state.final:
            return
        if state is not JobState.SUCCEEDED:
            try:
                job.retry()
                self.retried[job.id] += 1
            except OutcomeUnknown:
                self.doubtful.add(job.id)
        self._retries.remove(job)

    def _work(self, waiting: queue.SimpleQueue[Submission], begun: float) -> None:
        while not self._stop.is_set():
            try:
                submission = waiting.get_nowait()
            except queue.Empty:
                return
            self._stop.wait(max(0.0, begun + submission.at - time.monotonic()))
            if not self._stop.is_set():
                self._carry_out(submission)

    def _carry_out(self, submission: Submission) -> None:
        try:
            accepted = self._until_accepted(submission)
            if accepted and submission.key is not None:
                self._resubmit(submission, accepted)
        except Exception as error:
            log.exception("client_fault")
            self._fault(error)

    def _fault(self, error: Exception) -> None:
        with self._lock:
            self.faults.append(f"{type(error).__name__}: {error}")

    def _until_accepted(self, submission: Submission) -> list[Accepted]:
        deadline, numbers = time.monotonic() + RETRY_S, self._take_numbers(len(submission.specs))
        while not self._stop.is_set():
            try:
                jobs = self._submit(submission, numbers)
            except OutcomeUnknown as error:
                log.info("submit_unknown", jobs=len(submission.specs), error=str(error))
                known = self._look_up(error.job_ids)
                if known is None:
                    continue
                jobs = known
            except LedgerUnavailable as error:
                log.info("submit_refused", jobs=len(submission.specs), error=str(error))
                with self._lock:
                    self.refused += 1
                if time.monotonic() > deadline:
                    break
                self._stop.wait(0.2)
                continue
            return self._note(submission, numbers, jobs)
        with self._lock:
            self.given_up += len(submission.specs)
        return []

    def _look_up(self, ids: Sequence[str]) -> list[Job] | None:
        """The jobs of a submit of which nobody knew whether it was stored; None when it was not."""
        while not self._stop.wait(0.2):
            try:
                return [self.client.job(id) for id in ids]
            except JobNotFound:
                return None
            except LedgerUnavailable:
                continue
        return None

    def _submit(self, submission: Submission, numbers: Sequence[int]) -> list[Job]:
        specs = submission.specs
        if submission.kind is not JobKind.PREDICT:
            return [self._other(numbers[0], specs[0])]
        attempts = ATTEMPTS_OF_A_KILLER if any(spec.effect is Effect.KILL for spec in specs) else MAX_ATTEMPTS
        values = [data.predict_input(number, spec) for number, spec in zip(numbers, specs, strict=True)]
        submit = partial(
            self.client.predict_many if submission.many else self._one,
            self.models[JobKind.PREDICT],
            priority=numbers[0] % 10,
            max_attempts=attempts,
            idempotency_key=submission.key,
            batched=specs[0].rows > 0,
        )
        return submit(values)

    def _one(self, model: str, values: Sequence[Any], **options: Any) -> list[Job]:
        return [self.client.predict(model, values[0], **options)]

    def _other(self, number: int, spec: JobSpec) -> Job:
        client = self.client
        if spec.kind is JobKind.TRAIN:
            return client.train(
                TRAINED, recipe="classifier", dataset=data.write_training_rows(self.folder), target="label", seed=1,
                params={"epochs": 3}, checkpoint_steps=5, checkpoint_minutes=None, alias="best",
                metric="accuracy", max_attempts=MAX_ATTEMPTS, metadata={"number": number},
            )  # fmt: skip
        rows, model = data.write_rows(self.folder, number, spec), self.models[spec.kind]
        columns = {name: name for name in ("job", "row", "effect", "x")}
        if spec.kind is JobKind.EVALUATE:
            return client.evaluate(
                model, rows, target="truth", columns=columns, output="label", max_attempts=MAX_ATTEMPTS
            )
        return client.batch(
            model, rows, output_of(self.folder, number), columns=columns, keep="row", shard_rows=SHARD_ROWS,
            max_attempts=MAX_ATTEMPTS,
        )  # fmt: skip

    def _note(self, submission: Submission, numbers: Sequence[int], jobs: Sequence[Job]) -> list[Accepted]:
        noted = [
            Accepted(job.id, number, spec, submission.cancel_after_s is not None)
            for job, number, spec in zip(jobs, numbers, submission.specs, strict=True)
        ]
        with self._lock:
            self.accepted += noted
        if submission.cancel_after_s is not None:
            self._stop.wait(submission.cancel_after_s)
            for job in jobs:
                self._cancel(job)
        if submission.retry:
            ends_badly = [job for job, each in zip(jobs, noted, strict=True) if each.cancel or each.spec.effect]
            with self._lock:
                self._retries += ends_badly
        return noted

    def _cancel(self, job: Job) -> None:
        try:
            job.cancel()
        except LedgerUnavailable as error:
            log.info("cancel_refused", job=job.id, error=str(error))

    def _resubmit(self, submission: Submission, accepted: Sequence[Accepted]) -> None:
        """The same call under the same key, as a client makes it that did not hear the answer: the same jobs."""
        try:
            jobs = self._submit(submission, [a.number for a in accepted])
        except LedgerUnavailable:
            return
        if [job.id for job in jobs] != [a.id for a in accepted]:
            raise ForebayError(f"idempotency key {submission.key!r} gave other jobs the second time")

    def _take_numbers(self, count: int) -> list[int]:
        with self._lock:
            return list(itertools.islice(self._numbers, count))


def output_of(folder: Path, number: int) -> Path:
    """Where the batch of this number writes."""
    return folder / f"out-{number}"
