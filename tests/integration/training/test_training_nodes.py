"""The further machines of a run, in the ledger: made for one attempt, canceled with it; what the run makes of their states."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from forebay.contract.job import JobError, JobKind, JobState, new_ids
from forebay.contract.requests.request import decode, encode
from forebay.contract.requests.training import TrainRequest
from forebay.contract.settings import Settings
from forebay.storage.jobs.records import ClaimedJob, Finished, LeaseLost, NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.workers import WorkerRegistry
from forebay.worker.execution.context import ChildContext
from forebay.worker.kinds.train.nodes import (
    LOOPBACK,
    NodeRequest,
    PeerNodes,
    node_request,
    rendezvous_host,
)
from forebay.worker.kinds.train.stop_check import StopReason
from support.child import child_context
from support.waiting import FakeClock

REQUEST = TrainRequest("classifier", (), "parquet", nodes=3)
HELD, OTHER = "w1@one", "w2@two"
WAIT_S = 60.0


@dataclass
class Company:
    """A claimed run that has asked for two machines more."""

    context: ChildContext
    clock: FakeClock

    def __post_init__(self) -> None:
        self.jobs = self.context.jobs
        self.run = self.claimed()
        self.peers = self.asked(self.run)

    def claimed(self, worker: str = HELD) -> ClaimedJob:
        [id] = new_ids(1)
        self.jobs.add([NewJob(id, JobKind.TRAIN, "digits", 0, "train", input=encode(REQUEST))])
        [job] = self.jobs.claim([id], worker, 60)
        return job

    def asked(self, run: ClaimedJob) -> PeerNodes:
        peers = PeerNodes(self.context, run, WAIT_S, self.clock)
        peers.submit(node_request(run, REQUEST, None, LOOPBACK, WAIT_S))
        assert all(routed_job.exclusive for routed_job in self.context.dispatcher.sent)  # type: ignore[attr-defined]
        return peers

    def nodes(self) -> list[str]:
        return [info.id for info in self.jobs.queries.find(kind=JobKind.NODE, parent_id=self.run.id)]

    def states(self) -> set[JobState]:
        return set(self.jobs.queries.states(self.nodes()).values())

    def come(self) -> list[ClaimedJob]:
        return self.jobs.claim(self.nodes(), OTHER, 60)


@pytest.fixture
def company(store: JobStore, tmp_path: Path) -> Company:
    settings = Settings.load({"FOREBAY_HOME": str(tmp_path)})
    return Company(child_context(settings, store.ledger), FakeClock())


def test_a_run_waits_for_its_machines_and_says_for_how_many(company: Company) -> None:
    assert company.peers.reason() is None
    message = company.jobs.queries.get(company.run.id).progress.message
    assert message == "waiting for 2 of 3 machines, 60 s at most: start a worker for queue train"
    assert len(company.come()) == 2
    company.clock.forward(WAIT_S + 1)
    assert company.peers.reason() is None


def test_a_node_job_says_which_attempt_to_join_and_how(company: Company) -> None:
    task = decode(company.come()[0].input or b"", NodeRequest)
    assert (task.run, task.attempt, task.request.nodes) == (company.run.id, company.run.attempt, 3)
    assert task.request == REQUEST


def test_a_run_whose_machines_do_not_come_in_time_gives_up(company: Company) -> None:
    company.clock.forward(WAIT_S + 1)
    assert company.peers.reason() == StopReason.TOO_FEW_NODES


def test_a_machine_that_fails_is_lost_and_told(company: Company) -> None:
    first, _ = company.come()
    company.jobs.finish([Finished(first.id, first.attempt, error=JobError("TrainerLost", "signal 9"))])
    assert company.peers.reason() == StopReason.PEER_LOST
    assert company.peers.evidence() == "another machine of the run: signal 9"


def test_a_machine_that_stops_or_gives_its_node_back_has_left(company: Company) -> None:
    first, _ = company.come()
    assert company.peers.reason() is None
    company.jobs.release([first.id], OTHER)
    assert company.peers.reason() == StopReason.PEER_LEFT
    company.jobs.cancel([first.id])
    assert company.peers.reason() == StopReason.PEER_LEFT


def test_the_node_jobs_end_with_the_attempt_and_no_others(company: Company) -> None:
    first = company.jobs.claim(company.nodes()[:1], OTHER, 60)[0]
    company.peers.cancel()
    assert company.jobs.queries.cancel_requested(OTHER) == {first.id}
    company.jobs.release([company.run.id], HELD)
    [again] = company.jobs.claim([company.run.id], HELD, 60)
    company.asked(again)
    company.peers.cancel()  # of the attempt before
    states = list(company.jobs.queries.states(company.nodes()).values())
    assert sorted(states) == sorted([JobState.RUNNING, JobState.CANCELED, JobState.QUEUED, JobState.QUEUED])


def test_a_new_attempt_cancels_what_a_dead_one_has_left(company: Company) -> None:
    left = company.nodes()
    company.jobs.free_crashed([company.run.id], HELD, "it died")
    [again] = company.jobs.claim([company.run.id], HELD, 60)
    company.asked(again)
    assert set(company.jobs.queries.states(left).values()) == {JobState.CANCELED}


def test_an_attempt_that_lost_its_run_asks_for_nobody(company: Company) -> None:
    company.jobs.free_crashed([company.run.id], HELD, "it died")
    with pytest.raises(LeaseLost):
        company.asked(company.run)
    assert len(company.nodes()) == 2


def test_of_two_runs_that_wait_for_each_others_machine_the_younger_yields(company: Company) -> None:
    younger = company.asked(company.claimed(OTHER))
    assert younger.reason() == StopReason.YIELDS
    assert company.peers.reason() is None


def test_machines_meet_on_loopback_only_while_all_workers_of_the_queue_are_here(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "one")
    settings, workers = Settings.load({}), WorkerRegistry(ledger)
    workers.heartbeat("w1@one", "one", "cpu", ("train",), 0.0)
    workers.heartbeat("w2@two", "two", "cpu", ("cpu",), 0.0)
    assert rendezvous_host(settings, workers, "train") == LOOPBACK
    workers.heartbeat("w3@two", "two", "cpu", ("train",), 0.0)
    assert rendezvous_host(settings, workers, "train") == "one"
    given = Settings.load({"FOREBAY_RENDEZVOUS_HOST": "10.0.0.1"})
    assert rendezvous_host(given, workers, "train") == "10.0.0.1"


def test_a_crash_of_one_attempt_is_not_told_of_another(store: JobStore) -> None:
    [id] = new_ids(1)
    store.add([NewJob(id, JobKind.TRAIN, "digits", 0, "train", input=b"")])
    [job] = store.claim([id], HELD, 60)
    assert store.free_crashed([id], HELD, "it died", attempt=job.attempt + 1) == ([], [])
    [freed], _ = store.free_crashed([id], HELD, "it died", attempt=job.attempt)
    assert (freed.id, freed.crashes, bool(freed.exclusive)) == (id, 1, True)
