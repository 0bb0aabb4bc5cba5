"""Writes whose COMMIT gets no answer: each knows whether it was done, and says so."""

import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from forebay.contract.errors import LedgerUnavailable, OutcomeUnknown
from forebay.contract.job import JobState
from forebay.contract.model import ModelVersion
from forebay.contract.requests.batch import Piece, Shard
from forebay.contract.requests.shards import ShardOutcome, WrittenFile
from forebay.contract.settings import Settings
from forebay.contract.signature import Signature
from forebay.producer.client import Client
from forebay.producer.group_commit import GroupCommit, PendingSubmit
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger import silence
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.registry import ModelRegistry
from forebay.worker.execution.retrying import retry_while_unavailable
from support.batches import ROWS, MadeBatch
from support.commit_faults import FaultyDatabase, OneCut, faulty_database
from support.fault_proxy import Cut, Exchange
from support.jobs import add, claim, in_state, new
from support.ledgers import new_ledger
from support.servers import PostgresServer

BOTH = pytest.mark.parametrize("cut", Cut)


@BOTH
def test_a_submit_whose_answer_is_lost_is_a_refusal_only_when_nothing_was_stored(
    far_ledger: Ledger, faulty: FaultyDatabase, cut: Cut
) -> None:
    store, job = JobStore(far_ledger), new()
    faulty.lose(OneCut(cut, "INSERT INTO jobs"))
    if cut is Cut.AFTER:
        assert store.add([job]) == [job.id]
    else:
        with pytest.raises(LedgerUnavailable) as caught:
            store.add([job])
        assert not isinstance(caught.value, OutcomeUnknown)
    assert [info.id for info in store.queries.find()] == ([job.id] if cut is Cut.AFTER else [])


@BOTH
def test_a_split_whose_answer_is_lost_is_known_to_the_shard_that_was_split(
    far_ledger: Ledger, faulty: FaultyDatabase, cut: Cut
) -> None:
    batch = MadeBatch(far_ledger, 1)
    [(_, work)] = batch.claim([0])
    faulty.lose(OneCut(cut, "UPDATE shards SET pieces"))
    kept, given = (Shard((Piece(0, a, b),), 500, 50_000) for a, b in ((0, 500), (500, 1000)))
    if cut is Cut.AFTER:
        routed = batch.store.split(work, kept, given, batch.store.queries.get(batch.id))
        assert routed is not None
        assert len(routed) == 1
    else:
        with pytest.raises(LedgerUnavailable):
            batch.store.split(work, kept, given, batch.store.queries.get(batch.id))
    assert batch.store.queries.open_shards(batch.id) == (int(cut is Cut.AFTER), 1)


@BOTH
def test_a_shards_finish_whose_answer_is_lost_is_its_own(far_ledger: Ledger, faulty: FaultyDatabase, cut: Cut) -> None:
    batch = MadeBatch(far_ledger, 1)
    [(job, work)] = batch.claim([0])
    faulty.lose(OneCut(cut, "UPDATE shards SET rows"))
    outcome = ShardOutcome(ROWS, 0, 1.0, WrittenFile(f"{work.part}.parquet", "", ROWS, 4096, "0" * 64))
    if cut is Cut.BEFORE:
        with pytest.raises(LedgerUnavailable):
            batch.store.finish(work, outcome)
        assert batch.jobs.queries.get(job.id).state is JobState.RUNNING
    assert batch.store.finish(work, outcome)
    assert batch.jobs.queries.get(job.id).state is JobState.SUCCEEDED


def test_a_part_of_more_than_is_its_shards_is_refused(far_ledger: Ledger) -> None:
    batch = MadeBatch(far_ledger, 1)
    [(job, work)] = batch.claim([0])
    kept, given = (Shard((Piece(0, a, b),), 500, 50_000) for a, b in ((0, 500), (500, 1000)))
    assert batch.store.split(work, kept, given, batch.store.queries.get(batch.id))
    assert not batch.store.finish(work, ShardOutcome(ROWS, 0, 1.0)), "it was read before the split"
    assert batch.jobs.queries.get(job.id).state is JobState.RUNNING


@BOTH
def test_what_was_finished_is_not_taken_for_lost(far_ledger: Ledger, faulty: FaultyDatabase, cut: Cut) -> None:
    store = JobStore(far_ledger)
    outcomes = claim(store, add(store, 3))
    faulty.lose(OneCut(cut, "UPDATE jobs SET state = 'succeeded'"))
    if cut is Cut.BEFORE:
        with pytest.raises(LedgerUnavailable):
            store.finish(outcomes)
    assert len(store.finish(outcomes)) == 3


@BOTH
def test_a_retry_whose_answer_is_lost_gives_the_job(far_ledger: Ledger, faulty: FaultyDatabase, cut: Cut) -> None:
    store = JobStore(far_ledger)
    id = in_state(store, JobState.FAILED)
    faulty.lose(OneCut(cut, "UPDATE jobs SET state = 'queued'"))
    if cut is Cut.BEFORE:
        with pytest.raises(LedgerUnavailable):
            store.retry(id)
    assert store.retry(id).id == id


def test_a_transaction_that_wrote_nothing_leaves_no_mark(sqlite_ledger: Ledger) -> None:
    store = JobStore(sqlite_ledger)
    add(store)
    with sqlite_ledger.read() as connection:
        before = connection.exec_driver_sql("SELECT mark FROM last_commit").scalar()
        assert before
        assert store.claim(["0" * 32], "w", 30) == []
        assert connection.exec_driver_sql("SELECT mark FROM last_commit").scalar() == before


@pytest.mark.postgres
def test_a_commit_that_nobody_answers_for_is_unknown_and_no_refusal(own_postgres: PostgresServer) -> None:
    cut = OneCut(Cut.AFTER, "INSERT INTO jobs")

    def lose(exchange: Exchange) -> Cut | None:
        found = cut(exchange)
        if found is not None:
            own_postgres.stop()
        return found

    address = own_postgres.url.replace("postgresql://", "postgresql+psycopg://") + "/postgres"
    with faulty_database(address) as faulty, new_ledger(faulty.url, settle_s=0.3) as ledger:
        faulty.lose(lose)
        job = new()
        submit = PendingSubmit([job], None)
        GroupCommit(JobStore(ledger)).add_all([submit])
        assert isinstance(submit.error, OutcomeUnknown)
        assert f"it is not known whether job {job.id} was stored" in str(submit.error)
        assert submit.error.job_ids == (job.id,)


@pytest.mark.postgres
def test_a_question_about_a_commit_is_asked_again_when_it_goes_silent_itself(
    postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "ASKED_S", 0.2, raising=False)
    cut, silent, over = OneCut(Cut.AFTER, "INSERT INTO jobs"), [1], threading.Event()

    def lose(exchange: Exchange) -> Cut | None:
        if "pg_terminate_backend" in exchange.text and silent:
            silent.pop()
            over.wait(120)
        return cut(exchange)

    with faulty_database(postgres_database) as faulty, new_ledger(faulty.url, settle_s=60.0) as ledger:
        assert faulty.proxy is not None
        faulty.proxy.decide = lose
        job = new()
        assert JobStore(ledger).add([job]) == [job.id]
        assert silent == []
        over.set()


def test_what_nobody_knows_is_not_tried_again() -> None:
    tries: list[int] = []

    def act() -> None:
        tries.append(1)
        raise OutcomeUnknown

    with pytest.raises(OutcomeUnknown):
        retry_while_unavailable(act, 60.0)
    assert tries == [1]


@pytest.mark.parametrize("error", [LedgerUnavailable, OutcomeUnknown])
def test_a_batchs_folder_is_given_up_only_when_nothing_was_stored(
    sqlite_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[LedgerUnavailable]
) -> None:
    ModelRegistry(sqlite_ledger).register(ModelVersion("m", 0, "python", "", "none", 0, Signature()))
    np.save(tmp_path / "x.npy", np.arange(3.0))
    output = tmp_path / "out"

    def add(*_: object, **__: object) -> None:
        raise error

    settings = {
        "FOREBAY_HOME": str(tmp_path),
        "FOREBAY_DATABASE": sqlite_ledger.url,
        "FOREBAY_BROKER": "redis://127.0.0.1:1/0",
    }
    with closing(Client(Settings.load(settings))) as client:
        monkeypatch.setattr(client.session.jobs, "add", add)
        with pytest.raises(error):
            client.batch("m", tmp_path / "x.npy", output, columns="array")
    assert (output / "_batch.json").exists() is (error is OutcomeUnknown)
