"""A child's runner on a real ledger, with a model that does what the test says: stopping jobs, and trying again later."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from forebay.contract.errors import BlobStoreFull, BlobUnavailable, LedgerUnavailable, Transient
from forebay.contract.job import JobKind, JobState, new_ids
from forebay.contract.settings import Settings
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.jobs.records import ClaimedJob, NewJob
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.ceilings import CeilingStore
from forebay.worker.child.kinds import HandlerSpec
from forebay.worker.child.runner import Runner
from forebay.worker.execution import large_results
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.summary import Summary
from forebay.worker.kinds import predict, row_jobs
from support.runner_bench import Bench
from support.waiting import FakeClock, wait_until


@pytest.fixture
def ledger(sqlite_ledger: Ledger) -> Ledger:
    """What the statements do on PostgreSQL, JobStore's own tests say."""
    return sqlite_ledger


@pytest.fixture
def bench(ledger: Ledger, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(row_jobs, "CANCEL_CHECK_S", 0.0)
    return Bench(ledger, tmp_path)


def once(action: Callable[[], object]) -> Callable[[list[int]], None]:
    """`action` before the first batch, and no more."""
    left = [action]
    return lambda _: left.pop()() and None if left else None


# cancel requests


def test_a_job_asked_to_stop_is_not_begun_and_its_neighbours_are_run(bench: Bench) -> None:
    ids = bench.add(*range(12))
    bench.before = once(lambda: bench.store.cancel(ids[6:8]))
    summary = bench.runner.run(ids)
    assert (summary.succeeded, summary.stopped, summary.failed, summary.lost) == (10, 2, 0, 0)
    assert bench.states(ids) == "ssssssccssss"
    assert bench.ran == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]
    assert sorted(bench.broker.ids) == sorted(ids)
    assert bench.info(ids[6]).cancel_requested_at is not None


def test_a_job_of_many_rows_stops_between_two_batches(bench: Bench) -> None:
    (id,) = bench.add(*range(20), batched=True)
    bench.before = once(lambda: bench.store.cancel([id]))
    assert bench.runner.run([id]).stopped == 1
    assert bench.ran == [0, 1, 2, 3]
    assert bench.info(id).state is JobState.CANCELED


def test_a_job_that_was_done_before_its_worker_looked_has_succeeded(bench: Bench) -> None:
    ids = bench.add(*range(4))
    bench.before = once(lambda: bench.store.cancel(ids))
    assert bench.runner.run(ids).succeeded == 4
    assert bench.states(ids) == "ssss"


def test_a_job_asked_to_stop_while_its_model_loads_is_not_begun(bench: Bench) -> None:
    ids = bench.add(*range(4))
    bench.on_load = lambda: bench.store.cancel(ids)
    assert bench.runner.run(ids).stopped == 4
    assert bench.ran == []
    assert bench.states(ids) == "cccc"


def test_a_quick_pool_task_never_asks_who_is_to_stop(
    bench: Bench, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_jobs, "CANCEL_CHECK_S", 3600.0)
    asked: list[str] = []
    event.listen(ledger.engine, "before_cursor_execute", lambda _c, _u, statement, *_: asked.append(statement))
    assert bench.runner.run(bench.add(*range(20))).succeeded == 20
    assert not [
        statement for statement in asked if "SELECT" in statement and "cancel_requested_at IS NOT NULL" in statement
    ]


def test_a_ledger_that_is_away_does_not_stop_the_work(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: str) -> set[str]:
        raise LedgerUnavailable("away")

    monkeypatch.setattr(bench.store.queries, "cancel_requested", away)
    assert bench.runner.run(bench.add(*range(12))).succeeded == 12


# deadlines


def test_a_job_whose_deadline_passed_behind_others_of_its_claim_is_not_begun(bench: Bench, clock: FakeClock) -> None:
    hurried = bench.add(*range(2), deadline_at=clock() + 5)
    patient = bench.add(*range(2, 8))
    late = bench.add(8, 9, deadline_at=clock() + 5)
    bench.before = once(lambda: clock.forward(6))
    summary = bench.runner.run(hurried + patient + late)
    assert (summary.succeeded, summary.stopped) == (8, 2)
    assert bench.states(hurried + patient + late) == "ssssssssee"
    assert bench.ran == list(range(8))
    assert set(late) <= set(bench.broker.ids)


def test_a_job_that_was_begun_in_time_is_finished(bench: Bench, clock: FakeClock) -> None:
    (id,) = bench.add(*range(12), batched=True, deadline_at=clock() + 5)
    bench.before = once(lambda: clock.forward(6))
    bench.runner.run([id])
    assert bench.info(id).state is JobState.SUCCEEDED
    assert len(bench.ran) == 12


def test_a_job_whose_deadline_passed_while_its_model_loaded_is_not_begun(bench: Bench, clock: FakeClock) -> None:
    ids = bench.add(1, 2, deadline_at=clock() + 5)
    bench.on_load = lambda: clock.forward(6)
    assert bench.runner.run(ids).stopped == 2
    assert bench.states(ids) == "ee"


def test_a_job_whose_deadline_passed_in_a_buffer_is_not_claimed(bench: Bench, clock: FakeClock) -> None:
    ids = bench.add(1, deadline_at=clock() + 5)
    clock.forward(6)
    assert bench.runner.run(ids) == Summary(unclaimed=1)
    assert bench.ran == []


# transient errors


def test_a_transient_error_costs_an_attempt_and_a_wait_and_neighbours_nothing(bench: Bench, clock: FakeClock) -> None:
    ids = bench.add(*range(4))

    def away(rows: list[int]) -> None:
        if 2 in rows:
            raise Transient("the feature store answers 503")

    bench.before = away
    summary = bench.runner.run(ids)
    assert (summary.succeeded, summary.postponed, summary.failed, summary.lost) == (3, 1, 0, 0)
    info = bench.info(ids[2])
    assert (info.state, info.attempt, info.error) == (JobState.QUEUED, 1, None)
    assert info.progress.message == "Transient: the feature store answers 503"
    assert info.not_before is not None
    assert 0 <= info.not_before.timestamp() - clock() <= 1
    bench.before = lambda _: None
    clock.forward(1)
    assert [(t.id, t.crashes) for t in bench.store.sweeps.take_due()] == [
        (ids[2], 0)
    ]  # 0: no suspect, it may share a batch
    assert bench.runner.run(ids).succeeded == 1
    assert bench.info(ids[2]).attempt == 2


def test_a_job_that_waits_is_passed_over_by_claims_and_sweeps_until_its_time(bench: Bench, clock: FakeClock) -> None:
    (id,) = bench.add(1)
    bench.before = raising(Transient("away"))
    bench.runner.run([id])
    due = bench.info(id).not_before
    assert due is not None
    clock.forward(due.timestamp() - clock() - 0.001)
    assert bench.runner.run([id]).unclaimed == 1
    assert bench.store.sweeps.take_due() == []
    assert bench.store.queries.queues_with_unsent(-1) == []
    clock.forward(0.002)
    assert [t.id for t in bench.store.sweeps.take_due()] == [id]
    assert bench.info(id).not_before is None


def raising(error: Exception) -> Callable[[list[int]], None]:
    def act(_: list[int]) -> None:
        raise error

    return act


def test_at_its_last_attempt_a_transient_error_is_the_jobs_own(bench: Bench, clock: FakeClock) -> None:
    (id,) = bench.add(1, max_attempts=3)
    bench.before = raising(Transient("away"))
    for _ in range(3):
        bench.runner.run([id])
        clock.forward(60)
    info = bench.info(id)
    assert (info.state, info.attempt) == (JobState.FAILED, 3)
    assert info.error is not None
    assert (info.error.type, info.error.message) == ("Transient", "away")
    assert len(bench.ran) == 0


def test_any_other_error_is_never_tried_again(bench: Bench) -> None:
    (id,) = bench.add(1)
    bench.before = raising(ValueError("bad"))
    assert bench.runner.run([id]).failed == 1
    assert bench.info(id).attempt == 1


def test_a_model_that_cannot_be_loaded_for_now_fails_no_job_and_costs_no_attempt(
    bench: Bench, clock: FakeClock
) -> None:
    ids = bench.add(1, 2, max_attempts=1)
    bench.on_load = lambda: raising(BlobUnavailable("503"))([])
    for _ in range(5):
        assert bench.runner.run(ids).postponed == 2
        clock.forward(300)
    assert {(bench.info(id).state, bench.info(id).attempt) for id in ids} == {(JobState.QUEUED, 0)}
    bench.on_load = lambda: None
    assert bench.runner.run(ids).succeeded == 2


def test_an_input_that_cannot_be_read_for_now_is_read_later(bench: Bench, clock: FakeClock) -> None:
    (id,) = bench.add("x" * 300)
    folder = Path(bench.blobs.url.removeprefix("file://"))
    folder.rename(folder.with_name("unmounted"))
    assert bench.runner.run([id]).postponed == 1
    assert bench.info(id).progress.message.startswith("BlobUnavailable")
    folder.with_name("unmounted").rename(folder)
    clock.forward(1)
    assert bench.runner.run([id]).succeeded == 1


def test_a_result_that_cannot_be_stored_for_now_is_made_again(
    bench: Bench, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (id,) = bench.add("x" * 300)
    monkeypatch.setattr(bench.blobs, "put", lambda *_: raising(BlobUnavailable("no room"))([]))
    assert bench.runner.run([id]).postponed == 1
    monkeypatch.undo()
    clock.forward(1)
    assert bench.runner.run([id]).succeeded == 1


def test_large_inputs_are_held_a_few_at_a_time_and_those_not_begun_are_given_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "GROUP_BYTES", 500)
    ids = bench.add(*("x" * (300 + n) for n in range(7)))
    sizes: list[int] = []

    def act(rows: list[Any]) -> None:
        sizes.append(len(rows))
        if len(sizes) == 2:
            bench.context.page.stop()

    bench.before = act
    assert bench.runner.run(ids).succeeded == 4
    assert sizes == [2, 2], "not all that a message brings at once, nor a full batch"
    assert bench.states(ids) == "ssssqqq"
    assert {bench.info(id).attempt for id in ids[4:]} == {0}, "uncounted"


def test_a_damaged_input_fails_alone_among_those_read_ahead(bench: Bench) -> None:
    ids = bench.add(*("x" * (300 + n) for n in range(6)))
    found = (path for path in Path(bench.blobs.url.removeprefix("file://")).rglob("*") if path.is_file())
    path = sorted(found, key=lambda path: path.stat().st_size)[-4]
    path.write_bytes(path.read_bytes().replace(b"x", b"y"))
    bench.runner.run(ids)
    assert bench.states(ids) == "ssfsss"
    assert "damaged" in str(bench.info(ids[2]).error)


@pytest.fixture
def full(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No blob finds room until it is undone."""
    monkeypatch.setattr(large_results, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(large_results, "TICK_S", 0.01)
    bench.payloads = Payloads(bench.blobs, Settings.load({}))  # the inputs lie in their rows
    patch = pytest.MonkeyPatch()
    patch.setattr(bench.blobs, "put", lambda *_: raising(BlobStoreFull("no room"))([]))
    return patch


def ends_as(bench: Bench, id: str, state: JobState) -> None:
    wait_until(lambda: bench.info(id).state is state, f"it is {state}")
    wait_until(lambda: not bench.context.page.held(), "nothing is held any more")


def test_what_finds_no_room_holds_up_neither_its_neighbours_nor_later_jobs(
    bench: Bench, full: pytest.MonkeyPatch
) -> None:
    large, *small = bench.add("x" * 300, *range(8))
    assert bench.runner.run([large, *small]).succeeded == 8
    assert bench.runner.run(bench.add(8, 9)).succeeded == 2
    assert bench.info(large).state is JobState.RUNNING
    assert bench.context.page.held() == {large: 1}, "so that the parent renews its lease"
    full.undo()
    ends_as(bench, large, JobState.SUCCEEDED)
    assert bench.ran.count("x" * 300) == 1


def test_what_waits_for_room_can_be_canceled(bench: Bench, full: pytest.MonkeyPatch) -> None:
    (large,) = bench.add("x" * 300)
    bench.runner.run([large])
    bench.store.cancel([large])
    ends_as(bench, large, JobState.CANCELED)


def test_what_waits_for_room_is_dropped_when_its_lease_is_lost(bench: Bench, full: pytest.MonkeyPatch) -> None:
    (large,) = bench.add("x" * 300)
    bench.runner.run([large])
    bench.store.release([large], "w")
    bench.store.claim([large], "other", 60)
    wait_until(lambda: not bench.context.page.held(), "it is let go")
    full.undo()
    assert (bench.info(large).state, bench.info(large).worker) == (JobState.RUNNING, "other")


def test_what_waits_for_room_is_tried_again_when_its_time_is_up(
    bench: Bench, full: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    (large,) = bench.add("x" * 300, max_attempts=2)
    bench.runner.run([large])
    assert bench.handler._large is not None
    monkeypatch.setattr(bench.handler._large, "_timeout_s", 0.0)
    ends_as(bench, large, JobState.QUEUED)
    assert bench.info(large).progress.message.startswith("BlobStoreFull")


def test_only_so_many_wait_for_room_and_the_others_are_run_again(
    bench: Bench, full: pytest.MonkeyPatch, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_results, "MAX_WAITING", 2)
    ids = bench.add(*("x" * (300 + n) for n in range(4)))
    assert bench.runner.run(ids).postponed == 2
    assert bench.states(ids) == "rrqq"
    assert [bench.info(id).attempt for id in ids] == [1, 1, 0, 0], "that costs no attempt"
    full.undo()
    for id in ids[:2]:
        ends_as(bench, id, JobState.SUCCEEDED)
    clock.forward(1)
    assert bench.runner.run(ids[2:]).succeeded >= 2


def test_what_waits_for_room_stays_held_when_its_process_has_to_stop(bench: Bench, full: pytest.MonkeyPatch) -> None:
    (large,) = bench.add("x" * 300)
    bench.runner.run([large])
    bench.context.page.stop()
    assert bench.handler._large is not None
    thread = bench.handler._large._thread
    assert thread is not None
    thread.join(60)
    full.undo()
    assert not thread.is_alive()
    assert bench.context.page.held() == {large: 1}, "so that the parent gives it back"
    assert bench.info(large).state is JobState.RUNNING


def test_a_job_asked_to_stop_is_canceled_instead_of_waiting(bench: Bench) -> None:
    (id,) = bench.add(1)

    def act(_: list[int]) -> None:
        bench.store.cancel([id])
        raise Transient("away")

    bench.before = act
    assert bench.runner.run([id]).stopped == 1
    assert bench.info(id).state is JobState.CANCELED
    assert bench.broker.ids == [id]


@pytest.mark.parametrize("call", ["claim", "finish", "postpone"])
def test_a_short_absence_of_the_ledger_is_waited_out(bench: Bench, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    (id,) = bench.add(1)
    if call == "postpone":
        bench.before = raising(Transient("away"))
    real, calls = getattr(bench.store, call), []

    def away_once(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise LedgerUnavailable("the server closed the connection")
        return real(*args)

    monkeypatch.setattr(bench.store, call, away_once)
    summary = bench.runner.run([id])
    assert len(calls) == 2
    assert summary.succeeded + summary.postponed == 1


def test_a_ceiling_that_cannot_be_read_costs_no_batch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CeilingStore, "get", lambda *_: raising(LedgerUnavailable("away"))([]))
    assert bench.runner.run(bench.add(*range(8))).succeeded == 8


# queues


def test_a_message_that_strayed_from_another_queue_claims_nothing(bench: Bench) -> None:
    (stray,) = bench.add(1, queue="gpu")
    (mine,) = bench.add(2)
    summary = bench.runner.run([stray, mine])
    assert (summary.succeeded, summary.unclaimed) == (1, 1)
    assert (bench.info(stray).state, bench.info(stray).attempt) == (JobState.QUEUED, 0)


# kinds


class FirstOnly:
    """Runs one of the jobs it is given."""

    def __init__(self, context: ChildContext) -> None:
        self.context = context

    def run(self, claimed: Sequence[ClaimedJob], attempts: Attempts) -> None:
        first, *others = claimed
        attempts.release_all(others)
        attempts.run(first, lambda: attempts.succeed(first, b""))


def specs(handler: type, *needs: str) -> dict[JobKind, HandlerSpec]:
    return {JobKind.TRAIN: HandlerSpec(f"{handler.__module__}:{handler.__name__}", "training jobs", needs, "train")}


def test_what_a_handler_releases_is_handed_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HandlerSpec, "make", lambda _, context: FirstOnly(context))
    ids = bench.store.add([NewJob(id, JobKind.TRAIN, "m", 0, "cpu", input=b"") for id in new_ids(3)])
    summary = Runner(bench.context, specs(FirstOnly)).run(ids)
    assert (summary.succeeded, set(summary.released)) == (1, set(ids[1:]))
    assert [(bench.info(id).state, bench.info(id).attempt) for id in ids[1:]] == [(JobState.QUEUED, 0)] * 2


def test_jobs_without_their_packages_fail_with_what_to_install(bench: Bench) -> None:
    [id] = bench.store.add([NewJob(id, JobKind.TRAIN, "m", 0, "cpu", input=b"") for id in new_ids(1)])
    assert Runner(bench.context, specs(FirstOnly, "torchless", "json")).run([id]).failed == 1
    error = bench.info(id).error
    assert error is not None
    words = (
        "the worker lacks torchless, which training jobs need: pip install 'forebay[train]' where Forebay is installed"
    )
    assert (error.type, error.message) == ("MissingExtra", words)
