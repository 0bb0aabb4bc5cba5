"""JobStore against a plain dict: whatever workers, zombies, sweepers and users do, both say the same.

The model knows contract.job's table of transitions and nothing of SQL. A worker's claim is kept for ever, so every rule
that uses one may be a zombie's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from forebay.contract.errors import IllegalTransition, QueueFull
from forebay.contract.job import FINAL, JobError, JobKind, JobState, Transition, after, utc
from forebay.storage.jobs.records import Finished, NewJob, Postponed
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from support.waiting import FakeClock

WORKERS = st.sampled_from(["w1", "w2", "w3"])
LEASE = 10.0
RETENTION = 60.0


@dataclass
class Job:
    """What the ledger should hold of one job."""

    max_attempts: int
    deadline: float | None
    sent: float
    state: JobState = JobState.QUEUED
    attempt: int = 0  # as users see it
    claim: int | None = None  # who holds it: the serial number of the claim
    worker: str | None = None
    lease: float = 0.0
    crashes: int = 0
    stop: bool = False  # a user wants it to stop
    wait: float | None = None  # not before this time
    ended: float = 0.0
    result: bytes | None = None
    error: str | None = None

    def move(self, transition: Transition) -> None:
        self.state = after(self.state, transition)


@dataclass(frozen=True)
class Claim:
    """One worker's hold on one job, which it may long have lost."""

    serial: int
    id: str
    worker: str
    attempt: int


@dataclass
class Seen:
    """How often each job reached a final state between two retries."""

    ends: dict[str, int] = field(default_factory=dict)

    def add(self, id: str) -> None:
        self.ends[id] = self.ends.get(id, 0) + 1
        assert self.ends[id] == 1, f"job {id} ended twice"


class Jobs(RuleBasedStateMachine):
    """One run: a fresh table, a clock of its own."""

    ledger: ClassVar[Ledger]

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.ledger.now = self.clock  # type: ignore[method-assign]
        self.store = JobStore(self.ledger)
        self.jobs: dict[str, Job] = {}
        self.claims: list[Claim] = []
        self.seen = Seen()
        self.serial = count(1)
        with self.ledger.write() as connection:
            connection.execute(text("DELETE FROM jobs"))

    # users

    @initialize(max_attempts=st.lists(st.integers(1, 3), min_size=1, max_size=3), worker=WORKERS)
    def begin(self, max_attempts: list[int], worker: str) -> None:
        for attempts in max_attempts:
            self.add(1, attempts, None)
        self.claim_what_waits(worker)

    @precondition(lambda self: len(self.jobs) < 4)  # few jobs, so that what happens happens to the same ones
    @rule(howmany=st.integers(1, 3), max_attempts=st.integers(1, 3), deadline=st.sampled_from([None, 4.0, 25.0]))
    def add(self, howmany: int, max_attempts: int, deadline: float | None) -> None:
        self.add_some(howmany, max_attempts, deadline, None)

    @precondition(lambda self: len(self.jobs) < 4)
    @rule(howmany=st.integers(1, 4), maximum=st.integers(1, 5))
    def add_within(self, howmany: int, maximum: int) -> None:
        waiting = [id for id in self.jobs if self.state(id) is JobState.QUEUED]
        if len(waiting) + howmany <= maximum:
            self.add_some(howmany, 2, None, maximum)
            return
        with pytest.raises(QueueFull) as full:
            self.add_some(howmany, 2, None, maximum)
        assert (full.value.queue, full.value.maximum) == ("cpu", maximum)
        assert full.value.depth == min(len(waiting), 2 * maximum)

    def add_some(self, howmany: int, max_attempts: int, deadline: float | None, maximum: int | None) -> None:
        at = None if deadline is None else self.clock() + deadline
        ids = [f"{next(self.serial):032x}" for _ in range(howmany)]
        jobs = [NewJob(id, JobKind.PREDICT, "m", 1, "cpu", max_attempts=max_attempts, deadline_at=at) for id in ids]
        assert self.store.add(jobs, max_queue_size=maximum) == ids
        self.jobs |= {id: Job(max_attempts, at, self.clock()) for id in ids}

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ids = self.some(data)
        expected = {id for id in ids if self.state(id) is JobState.QUEUED}
        assert {e.id for e in self.store.cancel(ids)} == expected
        for id in expected:
            self.end(id, Transition.CANCEL)
        for id in set(ids) - expected:
            if self.state(id) is JobState.RUNNING:
                self.jobs[id].stop = True

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[id]
        try:
            job.move(Transition.RETRY)
        except IllegalTransition:
            with pytest.raises(IllegalTransition):
                self.store.retry(id)
            return
        assert self.store.retry(id).crashes == 0
        self.start_afresh(id)

    @rule(limit=st.integers(1, 3))
    def retry_failed(self, limit: int) -> None:
        expected = sorted(id for id in self.jobs if self.state(id) in (JobState.FAILED, JobState.EXPIRED))
        assert (
            self.store.queries.count_failed() == self.store.queries.count_failed(model="m", version=1) == len(expected)
        )
        assert self.store.retry_failed(model="other") == ([], None)
        retried: list[str] = []
        after_id: str | None = ""
        while after_id is not None:
            routed_jobs, after_id = self.store.retry_failed(model="m", after_id=after_id, limit=limit)
            assert len(routed_jobs) <= limit
            assert {t.crashes for t in routed_jobs} <= {0}
            retried += [t.id for t in routed_jobs]
        assert retried == expected
        for id in retried:
            self.jobs[id].move(Transition.RETRY)
            self.start_afresh(id)

    # workers

    @rule(worker=WORKERS)
    def claim_what_waits(self, worker: str) -> None:
        self.take([id for id in self.jobs if self.state(id) is JobState.QUEUED], worker)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), worker=WORKERS)
    def claim(self, data: st.DataObject, worker: str) -> None:
        self.take(self.some(data), worker)

    def take(self, ids: list[str], worker: str) -> None:
        expected = [id for id in ids if self.state(id) is JobState.QUEUED and not self.late(id) and not self.waits(id)]
        assert self.store.claim(ids, worker, LEASE, ["gpu", "other"]) == []
        got = self.store.claim(ids, worker, LEASE, ["gpu", "cpu"])
        assert [job.id for job in got] == expected
        for claimed in got:
            job = self.jobs[claimed.id]
            assert (claimed.tries, claimed.crashes) == (job.attempt + 1, job.crashes)
            assert claimed.deadline_at == job.deadline
            job.wait = None
            job.move(Transition.CLAIM)
            job.attempt, job.claim, job.worker, job.lease = (
                job.attempt + 1,
                next(self.serial),
                worker,
                self.clock() + LEASE,
            )
            self.claims.append(Claim(job.claim, claimed.id, worker, claimed.attempt))

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), error=st.booleans())
    def finish(self, data: st.DataObject, error: bool) -> None:
        held = data.draw(st.lists(st.sampled_from(self.claims[-12:]), min_size=1, max_size=4, unique_by=lambda c: c.id))
        how = {"error": JobError("E", "no")} if error else {}
        written = self.store.finish([Finished(c.id, c.attempt, b"%d" % c.serial, **how) for c in held])
        expected = [c for c in held if self.holds(c)]
        assert {e.id for e in written} == {c.id for c in expected}
        for claim in expected:
            self.end(claim.id, Transition.FAIL if error else Transition.SUCCEED)
            self.jobs[claim.id].error, self.jobs[claim.id].result = (
                ("E", None) if error else (None, b"%d" % claim.serial)
            )

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), ending=st.sampled_from([Transition.CANCEL, Transition.EXPIRE]))
    def stop(self, data: st.DataObject, ending: Transition) -> None:
        claim = data.draw(st.sampled_from(self.claims[-12:]))
        expected = [claim.id] if self.holds(claim) else []
        assert [e.id for e in self.store.finish([Finished(claim.id, claim.attempt, ending=ending)])] == expected
        for id in expected:
            self.end(id, ending)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), delay=st.sampled_from([1.0, 8.0]), counted=st.booleans())
    def postpone(self, data: st.DataObject, delay: float, counted: bool) -> None:
        held = data.draw(st.lists(st.sampled_from(self.claims[-12:]), min_size=1, max_size=4, unique_by=lambda c: c.id))
        ours = [c.id for c in held if self.holds(c)]
        later = [id for id in ours if not self.jobs[id].stop]
        queued, canceled = self.store.postpone([Postponed(c.id, c.attempt, delay, "away", counted) for c in held])
        assert queued == later
        assert [e.id for e in canceled] == [id for id in ours if id not in later]
        for id in ours:
            if id not in later:
                self.end(id, Transition.CANCEL)
                continue
            self.free(id)
            self.jobs[id].wait = self.clock() + delay
            self.jobs[id].attempt -= 0 if counted else 1

    @precondition(lambda self: self.jobs)
    @rule(worker=WORKERS)
    def look_for_cancel_requests(self, worker: str) -> None:
        wanted = [id for id in self.running(list(self.jobs), worker) if self.jobs[id].stop]
        assert self.store.queries.cancel_requested(worker) == set(wanted)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), worker=WORKERS)
    def renew(self, data: st.DataObject, worker: str) -> None:
        ids = self.some(data)
        expected = self.running(ids, worker)
        assert self.store.renew(ids, worker, LEASE) == set(expected)
        for id in expected:
            self.jobs[id].lease = self.clock() + LEASE

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims[-12:]))
        running = self.running([claim.id], claim.worker)
        expected = [id for id in running if not self.jobs[id].stop]
        assert [t.id for t in self.store.release([claim.id], claim.worker)] == expected
        for id in running:
            if id not in expected:
                self.end(id, Transition.CANCEL)
                continue
            self.free(id)
            self.jobs[id].attempt -= 1

    @rule(worker=WORKERS)
    def crash(self, worker: str) -> None:
        ids = list(self.jobs)
        self.lose(self.running(ids, worker), self.store.free_crashed(ids, worker, "signal 9"))

    # sweepers and time

    @rule(seconds=st.sampled_from([0.0, LEASE, LEASE + 1]))
    def free_lapsed(self, seconds: float) -> None:
        self.clock.forward(seconds)
        lapsed = [id for id, job in self.jobs.items() if job.state is JobState.RUNNING and job.lease < self.clock()]
        self.lose(lapsed, self.store.sweeps.free_lapsed())

    @rule(seconds=st.sampled_from([0.0, 4.0]))
    def expire(self, seconds: float) -> None:
        self.clock.forward(seconds)
        expected = {id for id in self.jobs if self.state(id) is JobState.QUEUED and self.late(id)}
        assert {e.id for e in self.store.sweeps.expire()} == expected
        for id in expected:
            self.end(id, Transition.EXPIRE)

    @rule(seconds=st.sampled_from([0.0, 1.0, 8.0]))
    def take_due(self, seconds: float) -> None:
        self.clock.forward(seconds)
        queued = {id: job for id, job in self.jobs.items() if job.state is JobState.QUEUED}
        expected = sorted(id for id, job in queued.items() if job.wait is not None and job.wait <= self.clock())
        routed_jobs = self.store.sweeps.take_due()
        assert [(t.id, t.crashes) for t in routed_jobs] == [(id, self.jobs[id].crashes) for id in expected]
        for id in expected:
            self.jobs[id].wait, self.jobs[id].sent = None, self.clock()

    @rule(older=st.sampled_from([0.0, 7.0]))
    def take_unsent(self, older: float) -> None:
        before = self.clock() - older
        queued = [id for id in self.jobs if self.state(id) is JobState.QUEUED and self.jobs[id].wait is None]
        assert [t.id for t in self.store.queries.queued(list(self.jobs))] == sorted(queued)
        waiting = [id for id in queued if self.jobs[id].sent < before]
        assert self.store.queries.queues_with_unsent(older) == (["cpu"] if waiting else [])
        assert [t.id for t in self.store.sweeps.take_unsent("cpu", older)] == sorted(waiting)
        for id in waiting:
            self.jobs[id].sent = self.clock()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def mark_unsent(self, data: st.DataObject) -> None:
        ids = self.some(data)
        self.store.mark_unsent(ids)
        for id in ids:
            if self.state(id) is JobState.QUEUED:
                self.jobs[id].sent = 0.0

    @rule(seconds=st.sampled_from([0.0, RETENTION, RETENTION + 1]))
    def purge(self, seconds: float) -> None:
        self.clock.forward(seconds)
        old = [id for id, job in self.jobs.items() if job.state in FINAL and job.ended < self.clock() - RETENTION]
        assert self.store.sweeps.purge(RETENTION) == len(old)
        self.jobs = {id: job for id, job in self.jobs.items() if id not in old}

    @rule(seconds=st.sampled_from([1.0, 4.0, LEASE]))
    def wait(self, seconds: float) -> None:
        self.clock.forward(seconds)

    @invariant()
    def the_ledger_holds_what_the_model_holds(self) -> None:
        ids = list(self.jobs)
        assert self.store.queries.states(ids) == {id: job.state for id, job in self.jobs.items()}
        held = {job.id: job for job in self.store.queries.find(limit=1000)}
        assert held.keys() == self.jobs.keys()
        for id, job in self.jobs.items():
            info = held[id]
            assert (info.attempt, info.max_attempts) == (job.attempt, job.max_attempts)
            assert (info.cancel_requested_at is not None) == job.stop
            assert info.not_before == utc(job.wait)
            assert (info.error and info.error.type) == job.error
            assert job.state is not JobState.RUNNING or info.worker == job.worker
        read = {o.id: (o.state, o.result) for o in self.store.queries.outcomes(ids)}
        assert read == {id: (job.state, job.result) for id, job in self.jobs.items() if job.state in FINAL}

    # the model's own words

    def some(self, data: st.DataObject) -> list[str]:
        """A few jobs in any order."""
        return data.draw(st.lists(st.sampled_from(sorted(self.jobs)), min_size=1, max_size=4, unique=True))

    def state(self, id: str) -> JobState | None:
        return self.jobs[id].state if id in self.jobs else None

    def late(self, id: str) -> bool:
        deadline = self.jobs[id].deadline
        return deadline is not None and deadline <= self.clock()

    def waits(self, id: str) -> bool:
        wait = self.jobs[id].wait
        return wait is not None and wait > self.clock()

    def start_afresh(self, id: str) -> None:
        self.jobs[id] = Job(self.jobs[id].max_attempts, None, self.clock())
        self.seen.ends.pop(id)

    def holds(self, claim: Claim) -> bool:
        return self.state(claim.id) is JobState.RUNNING and self.jobs[claim.id].claim == claim.serial

    def running(self, ids: list[str], worker: str) -> list[str]:
        return [id for id in ids if self.state(id) is JobState.RUNNING and self.jobs[id].worker == worker]

    def free(self, id: str) -> None:
        job = self.jobs[id]
        job.move(Transition.RELEASE)
        job.claim, job.worker, job.sent = None, None, self.clock()

    def end(self, id: str, transition: Transition) -> None:
        job = self.jobs[id]
        job.move(transition)
        job.claim, job.ended = None, self.clock()
        if transition is Transition.CANCEL:
            job.wait = None
        self.seen.add(id)

    def lose(self, lost: list[str], answer: tuple[list[Any], list[Any]]) -> None:
        freed, failed = ([item.id for item in items] for items in answer)
        stop = [id for id in lost if self.jobs[id].stop]
        spent = [id for id in lost if id not in stop and self.jobs[id].attempt >= self.jobs[id].max_attempts]
        assert sorted(failed) == sorted(stop + spent)
        assert freed == sorted(set(lost) - set(stop) - set(spent))
        for id in freed:
            self.free(id)
            self.jobs[id].crashes += 1
        for id in stop:
            self.end(id, Transition.CANCEL)
        for id in spent:
            self.end(id, Transition.FAIL)
            self.jobs[id].error = "WorkerLost"


@contextmanager
def on(ledger: Ledger) -> Iterator[type[Jobs]]:
    """The machine for this ledger, whose clock is its own again afterwards."""
    now = ledger.now
    try:
        yield type("JobsHere", (Jobs,), {"ledger": ledger})
    finally:
        ledger.now = now  # type: ignore[method-assign]


@pytest.mark.timeout(600)  # it takes seconds when it passes; making a failure small takes minutes
def test_whatever_happens_the_ledger_agrees_with_the_state_machine(ledger: Ledger) -> None:
    with on(ledger) as machine:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=120, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
            ),
        )
