"""What may happen to a claimed job, on a real ledger: each end is fenced by the attempt, counted, and told to the client."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from forebay.contract.errors import BlobUnavailable, InvalidInput, LedgerUnavailable
from forebay.contract.job import JobKind, JobState, new_ids
from forebay.contract.settings import Settings
from forebay.storage.jobs.records import ClaimedJob, LeaseLost, NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.migrate import upgrade
from forebay.worker.execution.attempts import Attempts, Canceled, Fate, Stopping, Summary
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.shared_page import SharedPage
from support.waiting import FakeClock


class Announced:
    def __init__(self) -> None:
        self.ids: list[str] = []

    def announce(self, ended: Any) -> None:
        self.ids += [job.id for job in ended]


class Bench:
    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.store, self.announced = JobStore(ledger), Announced()
        settings = Settings.load({"FOREBAY_HOME": str(folder), "FOREBAY_WORKER_NAME": "w", "FOREBAY_LEASE_S": "30"})
        announcer: Any = self.announced
        self.metrics = ChildMetrics()
        self.attempts = Attempts(self.store, announcer, SharedPage(), self.metrics, settings)

    def claim(self, kind: JobKind = JobKind.EVALUATE, version: int = 1, **more: Any) -> ClaimedJob:
        [id] = new_ids(1)
        self.store.add([NewJob(id, kind, "m", version, "cpu", client="c", input=b"", **more)])
        [job] = self.attempts.claim([id])
        return job

    def lose(self, job: ClaimedJob) -> None:
        """Somebody else has the job by now."""
        self.store.release([job.id], "w")
        self.store.claim([job.id], "other", 30)

    def state(self, job: ClaimedJob) -> JobState:
        return self.store.queries.get(job.id).state


@pytest.fixture
def bench(sqlite_database: str, clock: FakeClock, tmp_path: Path) -> Iterator[Bench]:
    with closing(Ledger(sqlite_database, create=True)) as ledger:
        upgrade(ledger)
        yield Bench(ledger, tmp_path)


def raising(error: Exception) -> Callable[[], Fate]:
    def work() -> Fate:
        raise error

    return work


def test_work_that_ends_its_job_is_counted_and_announced(bench: Bench) -> None:
    job = bench.claim()
    assert bench.attempts.run(job, lambda: bench.attempts.succeed(job, b"\x01")) is Fate.SUCCEEDED
    assert (bench.state(job), bench.announced.ids) == (JobState.SUCCEEDED, [job.id])
    assert bench.attempts.take_summary() == Summary(succeeded=1)
    assert bench.attempts.take_summary() == Summary()


@pytest.mark.parametrize(
    ("error", "fate", "state"),
    [
        (ValueError("bad"), Fate.FAILED, JobState.FAILED),
        (BlobUnavailable("503"), Fate.POSTPONED, JobState.QUEUED),
        (Stopping(), Fate.RELEASED, JobState.QUEUED),
        (Canceled(), Fate.STOPPED, JobState.CANCELED),
    ],
)
def test_work_that_raises_ends_its_job_as_the_error_says(
    bench: Bench, error: Exception, fate: Fate, state: JobState
) -> None:
    job = bench.claim()
    assert bench.attempts.run(job, raising(error)) is fate
    assert bench.state(job) is state
    assert bench.attempts.take_summary().released == ((job.id,) if fate is Fate.RELEASED else ())


def test_an_error_that_may_pass_fails_the_job_at_its_last_attempt_unless_it_is_not_counted(bench: Bench) -> None:
    away = raising(BlobUnavailable("503"))
    assert bench.attempts.run(bench.claim(max_attempts=1), away) is Fate.FAILED
    assert bench.attempts.run(bench.claim(max_attempts=1), away, count_errors=False) is Fate.POSTPONED


def test_without_a_ledger_nothing_is_written_and_the_lease_lapses(bench: Bench) -> None:
    job = bench.claim()
    with pytest.raises(LedgerUnavailable):
        bench.attempts.run(job, raising(LedgerUnavailable("away")))
    assert bench.state(job) is JobState.RUNNING


END: dict[str, Callable[[Attempts, ClaimedJob], Fate]] = {
    "succeed": lambda attempts, job: attempts.succeed(job, b""),
    "fail": lambda attempts, job: attempts.fail(job, "ValueError", "bad"),
    "cancel": lambda attempts, job: attempts.cancel(job),
    "postpone": lambda attempts, job: attempts.postpone(job, "later"),
    "crashed": lambda attempts, job: attempts.crashed(job, "signal 9"),
    "a store's word": lambda attempts, job: raising(LeaseLost(job.id))(),
}


@pytest.mark.parametrize("end", END.values(), ids=END.keys())
def test_who_has_lost_the_lease_writes_nothing_and_the_history_tells(
    bench: Bench, end: Callable[[Attempts, ClaimedJob], Fate]
) -> None:
    job = bench.claim()
    bench.lose(job)
    assert bench.attempts.run(job, lambda: end(bench.attempts, job)) is Fate.LOST
    assert (bench.state(job), bench.store.queries.get(job.id).worker, bench.announced.ids) == (
        JobState.RUNNING,
        "other",
        [],
    )
    assert "refused" in [attempt.ended for attempt in bench.store.queries.past_attempts(job.id)]
    assert bench.attempts.take_summary() == Summary(lost=1)


def test_a_job_whose_process_died_is_queued_again_and_fails_at_its_last_attempt(bench: Bench) -> None:
    job = bench.claim()
    assert bench.attempts.crashed(job, "signal 9") is Fate.RELEASED
    assert (bench.state(job), bench.store.queries.get(job.id).attempt) == (JobState.QUEUED, 1)
    last = bench.claim(max_attempts=1)
    assert bench.attempts.crashed(last, "signal 9") is Fate.FAILED
    assert bench.announced.ids == [last.id]


def test_training_has_series_of_its_own_and_counts_under_no_version(bench: Bench) -> None:
    job, failing, helper = (bench.claim(kind, 0) for kind in (JobKind.TRAIN, JobKind.TRAIN, JobKind.NODE))
    for one in (job, helper):
        bench.attempts.run(one, partial(bench.attempts.succeed, one, b""))
    bench.attempts.run(failing, raising(InvalidInput("no")))
    told = bench.metrics.take({}, 0)
    counts = {"succeeded": 1, "failed": 1}
    assert told.counters == {"training_attempts_total": {("m", state): n for state, n in counts.items()}}
    assert [*told.histograms] == ["training_seconds"]
    assert bench.attempts.take_summary().succeeded == 2
    evaluated = bench.claim()
    bench.attempts.run(evaluated, lambda: bench.attempts.succeed(evaluated, b""))
    told = bench.metrics.take({}, 0)
    assert told.counters == {"jobs_finished_total": {("m", "1", "evaluate", "succeeded"): 1}}
    assert sorted(told.histograms) == ["job_run_seconds", "job_wait_seconds"]
