"""What becomes of a shard with which processes have died: run, run alone, cut, or written down; and when a batch fails."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from forebay.contract.job import JobError, JobKind, JobState
from forebay.contract.requests.batch import BatchRequest, InputFile, Piece, Position, Shard
from forebay.contract.requests.shards import ShardWork
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.batches.records import Batch
from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.kinds.batch.poison import MOST_DEATHS, WAYS, PoisonIsolation

REQUEST = BatchRequest((InputFile("/nowhere.npy", 800),), "out", "npy", {"x": ("array",)})
BATCH = Batch("b", "m", 1, "cpu", 7, 5, JobState.RUNNING, 800, Position(1), 1, True, 1.0, b"", 1)


@dataclass
class Store:
    """Remembers into what a shard was cut."""

    died: tuple[int, int] = (1, 0)
    lost: bool = False
    parts: list[Shard] = field(default_factory=list)

    @property
    def queries(self) -> "Store":
        return self

    def split_suspect(self, work: ShardWork, kept: Shard, given: list[Shard], batch: Batch) -> list[RoutedJob] | None:
        self.parts = [kept, *given]
        return None if self.lost else [RoutedJob("t", "m", 1, "cpu", 7, 1, True) for _ in given]

    def crashes(self, batch: Batch) -> tuple[int, int]:
        return self.died

    def crash_evidence(self, shard: str) -> str:
        return "attempt 4 of 5: signal 9"

    def last_crash_evidence(self, batch: str) -> str:
        return "signal 11"


@dataclass
class BatchCoordinator:
    """Remembers what was sent, and why a batch failed."""

    sent: list[RoutedJob] = field(default_factory=list)
    error: JobError | None = None

    def send(self, routed_jobs: list[RoutedJob]) -> None:
        self.sent += routed_jobs

    def fail(self, id: str, attempt: int, error: JobError) -> None:
        self.error = error


def isolate(store: Store, coordinator: BatchCoordinator, *, tries: int, crashes: int, rows: int = 100) -> Any:
    job = ClaimedJob("s", JobKind.SHARD, "m", 1, "cpu", tries, 5, None, rows, None, None, tries, crashes)
    work = ShardWork("s", "b", tries, "part", (Piece(0, 0, rows),), rows, 8 * rows, 30.0)
    return PoisonIsolation(store, coordinator, iter).isolate(job, work, REQUEST, BATCH)  # type: ignore[arg-type]


@pytest.mark.parametrize(("tries", "crashes"), [(1, 0), (5, 0), (2, 1), (4, 1)])
def test_what_has_killed_at_most_once_runs_as_it_is(tries: int, crashes: int) -> None:
    store = Store()
    isolated = isolate(store, BatchCoordinator(), tries=tries, crashes=crashes)
    assert (isolated.work.rows, isolated.known_error, store.parts) == (100, None, [])


@pytest.mark.parametrize(("tries", "crashes"), [(3, 2), (5, 1), (5, 4)])
def test_what_kills_again_or_has_no_further_attempt_is_cut_and_its_first_part_run(tries: int, crashes: int) -> None:
    store, coordinator = Store(), BatchCoordinator()
    isolated = isolate(store, coordinator, tries=tries, crashes=crashes)
    assert len(store.parts) == WAYS == len(coordinator.sent) + 1
    assert isolated.work.pieces == store.parts[0].pieces == (Piece(0, 0, 12),)
    assert (isolated.job.tries, isolated.job.crashes, isolated.known_error) == (1, 1, None)


def test_a_shard_whose_lease_was_lost_meanwhile_is_left_to_others() -> None:
    coordinator = BatchCoordinator()
    assert isolate(Store(lost=True), coordinator, tries=3, crashes=2) is None
    assert coordinator.sent == []


@pytest.mark.parametrize(("tries", "crashes", "run"), [(3, 3, True), (4, 4, True), (5, 1, True), (5, 2, False)])
def test_a_single_row_is_run_until_its_last_attempt_and_then_written_down(tries: int, crashes: int, run: bool) -> None:
    isolated = isolate(Store(), BatchCoordinator(), tries=tries, crashes=crashes, rows=1)
    assert (isolated.known_error is None) is run
    if not run:
        assert (
            str(isolated.known_error)
            == "this row ended its process, or took all its memory, 2 times; attempt 4 of 5: signal 9"
        )


def test_a_batch_that_kills_process_after_process_and_gets_nowhere_is_given_up() -> None:
    coordinator = BatchCoordinator()
    assert isolate(Store((MOST_DEATHS + 3, 3)), coordinator, tries=3, crashes=2) is not None
    assert isolate(Store((MOST_DEATHS + 4, 3)), coordinator, tries=3, crashes=2) is None
    assert coordinator.error is not None
    assert coordinator.error.type == "WorkerLost"
    assert (
        coordinator.error.message == "54 processes died with rows of this batch, and 3 shards have succeeded; signal 11"
    )
