"""What the client submits: a plan drawn from a seed, and a few threads that carry it out while things break.

A submit that raises LedgerUnavailable stored nothing, and is made again; one that raises OutcomeUnknown is looked up first.
Knows the client; what becomes of the jobs is the audit's.
"""

from __future__ import annotations

import itertools
import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from chaos.audit import Accepted
from chaos.model import Effect
from forebay.contract.errors import ForebayError, JobNotFound, LedgerUnavailable, OutcomeUnknown
from forebay.producer.client import Client
from forebay.producer.handles.job import Job

log = structlog.get_logger()

THREADS = 3
RETRY_S = 60.0  # for a ledger that does not answer
SMALL, LARGE = 8, 2048  # elements of a row; large ones go to the blob store
CANCELED = 0.02  # of the calls: some of their jobs still wait when they are canceled, some run, some have ended
MAX_ATTEMPTS, ATTEMPTS_OF_A_KILLER = 10, 2
# What one call submits: weight, and the least and most jobs in it.
SHAPES = {
    "many": (10, 20, 100),
    "single": (60, 1, 1),
    "batched": (10, 1, 1),
    "keyed": (12, 1, 1),
    "keyed many": (4, 5, 30),
}


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One job to submit: `rows` of `size` elements; `rows` is 0 for a job that is no batch."""

    effect: Effect = Effect.FINE
    rows: int = 0
    size: int = SMALL


@dataclass(frozen=True, slots=True)
class Submission:
    """One call of the client, `at` seconds after the start. A `key` is used twice; `cancel_after_s` cancels all its jobs."""

    at: float
    specs: tuple[JobSpec, ...]
    many: bool = False
    key: str | None = None
    cancel_after_s: float | None = None


def draw(seed: int, jobs: int, seconds: float) -> list[Submission]:
    """Calls that submit `jobs` jobs in all within `seconds`, in order of time."""
    chance = random.Random(f"load {seed}")
    killers = min(jobs, max(1, jobs // 2500))
    effects = [Effect.FAIL] * max(1, jobs // 100) + [Effect.FINE] * jobs
    effects = effects[: jobs - killers]
    chance.shuffle(effects)
    made = [Submission(_time(chance, seconds), (JobSpec(Effect.KILL),)) for _ in range(killers)]
    while effects:
        shape = chance.choices(list(SHAPES), [weight for weight, _, _ in SHAPES.values()])[0]
        _, least, most = SHAPES[shape]
        count = chance.randint(least, most)
        taken, effects = effects[:count], effects[count:]
        rows = chance.randint(2, 16) if shape == "batched" else 0
        specs = tuple(JobSpec(effect, rows, LARGE if chance.random() < 0.03 else SMALL) for effect in taken)
        key = f"chaos-{seed}-{len(made)}" if shape.startswith("keyed") else None
        cancel = chance.uniform(0, 1) if chance.random() < CANCELED else None
        made.append(Submission(_time(chance, seconds), specs, shape.endswith("many"), key, cancel))
    return sorted(made, key=lambda s: s.at)


def _time(chance: random.Random, seconds: float) -> float:
    return round(chance.uniform(0, 0.95 * seconds), 3)


def x_of(job: int, row: int, size: int) -> NDArray[np.float32]:
    """The input of one row, which no other row has; whole numbers, so that 2x + 1 is exact."""
    return (np.arange(size, dtype=np.float32) + 17 * row + 31 * job) % np.float32(100_003)


def truth(job: int, rows: int, size: int) -> NDArray[np.float32]:
    """The right result of a job: `(size,)`, or `(rows, size)` for a batch."""
    found = np.stack([2 * x_of(job, row, size) + np.float32(1) for row in range(max(1, rows))])
    return found if rows else found[0]


@dataclass
class Load:
    """Carries a plan out. `accepted` and the counters may be read when `join` has returned True."""

    client: Client
    model: str
    plan: Sequence[Submission]
    accepted: list[Accepted] = field(default_factory=list)
    refused: int = 0  # submits that the ledger did not take, and that were tried again
    given_up: int = 0  # jobs whose submit was refused for a whole minute
    faults: list[str] = field(default_factory=list)  # what a client must never meet
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
        for thread in self._threads:
            thread.start()

    def join(self, timeout: float) -> bool:
        """Whether all has been submitted after at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Submit no more."""
        self._stop.set()

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
        attempts = ATTEMPTS_OF_A_KILLER if any(spec.effect is Effect.KILL for spec in specs) else MAX_ATTEMPTS
        values = [_input(number, spec) for number, spec in zip(numbers, specs, strict=True)]
        submit = partial(
            self.client.predict_many if submission.many else self._one,
            self.model,
            priority=numbers[0] % 10,
            max_attempts=attempts,
            idempotency_key=submission.key,
            batched=specs[0].rows > 0,
        )
        return submit(values)

    def _one(self, model: str, values: Sequence[Any], **options: Any) -> list[Job]:
        return [self.client.predict(model, values[0], **options)]

    def _note(self, submission: Submission, numbers: Sequence[int], jobs: Sequence[Job]) -> list[Accepted]:
        noted = [
            Accepted(job.id, number, spec.effect, spec.rows, spec.size, submission.cancel_after_s is not None)
            for job, number, spec in zip(jobs, numbers, submission.specs, strict=True)
        ]
        with self._lock:
            self.accepted += noted
        if submission.cancel_after_s is not None:
            self._stop.wait(submission.cancel_after_s)
            for job in jobs:
                self._cancel(job)
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


def _input(number: int, spec: JobSpec) -> dict[str, object]:
    if not spec.rows:
        return {"job": number, "row": 0, "effect": int(spec.effect), "x": x_of(number, 0, spec.size)}
    return {
        "job": np.full(spec.rows, number, np.int64),
        "row": np.arange(spec.rows, dtype=np.int64),
        "effect": np.full(spec.rows, int(spec.effect), np.int64),
        "x": np.stack([x_of(number, row, spec.size) for row in range(spec.rows)]),  # (rows, size)
    }
