"""Batches of requests in the ledger: who holds one, what a late holder may not write, and what is kept for it."""

from dataclasses import replace

import msgspec
import pytest

from forebay.contract.errors import IllegalTransition, InvalidInput
from forebay.storage.blobs.sweep import USED
from forebay.storage.files import FileRecord, FileStore
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.request_batches import SAME_S, BatchStatus, BatchTaken, RequestBatch, RequestBatches
from support.jobs import add, claim
from support.waiting import FakeClock

BLOB = "sha256:" + "1" * 64
FILE = FileRecord("file-1", "ada", "out.jsonl", "batch_output", 7, BLOB, 5.0)


@pytest.fixture
def batches(ledger: Ledger) -> RequestBatches:
    return RequestBatches(ledger)


def batch(clock: FakeClock, id: str = "1", **more: object) -> RequestBatch:
    made = RequestBatch(id, "ada", "openai:ada", "file-0", BLOB, "/v1/embeddings", clock(), clock() + 60)
    return msgspec.structs.replace(made, **more)


def test_one_server_holds_a_batch_until_its_lease_lapses(batches: RequestBatches, clock: FakeClock) -> None:
    batches.add(batch(clock))
    assert [stored.batch.id for stored in batches.take("a", 10, 5)] == ["1"]
    assert batches.take("b", 10, 5) == []
    clock.forward(9)
    [held] = batches.take("a", 10, 5)
    clock.forward(9)
    batches.renew(held, "a", 10)
    clock.forward(9)
    assert batches.take("b", 10, 5) == []
    clock.forward(1)
    assert len(batches.take("b", 10, 5)) == 1
    batches.give_back("b")
    assert len(batches.take("a", 10, 5)) == 1


def test_a_server_whose_lease_has_lapsed_writes_nothing(
    batches: RequestBatches, clock: FakeClock, ledger: Ledger
) -> None:
    batches.add(batch(clock))
    [late] = batches.take("a", 10, 5)
    clock.forward(10)
    [other] = batches.take("b", 10, 5)
    done = msgspec.structs.replace(late.batch, status=BatchStatus.COMPLETED, output_file_id=FILE.id)
    with pytest.raises(BatchTaken):
        batches.save(done, late.step, "a", [FILE])
    with pytest.raises(BatchTaken):
        batches.renew(late, "a", 10)
    assert FileStore(ledger).list("ada", limit=9) == []
    second = replace(FILE, id="file-2")
    batches.save(msgspec.structs.replace(done, output_file_id=second.id), other.step, "b", [second])
    assert [file.id for file in FileStore(ledger).list("ada", limit=9)] == ["file-2"]
    with pytest.raises(BatchTaken):  # nor the same holder twice
        batches.save(done, other.step, "b", [FILE])
    assert batches.take("b", 10, 5) == []


def test_a_cancel_stops_what_its_holder_was_about_to_write(batches: RequestBatches, clock: FakeClock) -> None:
    batches.add(batch(clock))
    [held] = batches.take("a", 10, 5)
    canceled = batches.cancel("1", "ada")
    assert canceled is not None
    assert (canceled.status, canceled.cancelling_at) == (BatchStatus.CANCELLING, clock())
    with pytest.raises(BatchTaken):
        batches.save(msgspec.structs.replace(held.batch, status=BatchStatus.IN_PROGRESS), held.step, "a")
    [again] = batches.take("a", 10, 5)
    batches.save(msgspec.structs.replace(again.batch, status=BatchStatus.CANCELLED), again.step, "a")
    with pytest.raises(IllegalTransition, match="the batch is cancelled"):
        batches.cancel("1", "ada")
    assert batches.cancel("1", "bob") is None


def test_the_same_request_is_the_same_batch_for_a_while_and_not_when_that_failed(
    batches: RequestBatches, clock: FakeClock
) -> None:
    def made(id: str, key: str | None = None, **more: object) -> str:
        return batches.add(batch(clock, id, **more), key).id

    assert [made("1"), made("2"), made("3", owner="bob"), made("4", metadata={"a": "b"})] == ["1", "1", "3", "4"]
    assert [made("5", "k"), made("6", "k"), made("7", "l")] == ["5", "5", "7"]
    with pytest.raises(InvalidInput, match="asks for something else"):
        made("8", "k", input_file_id="file-9")
    clock.forward(SAME_S)
    assert made("9") == "9"
    failed = msgspec.structs.replace(batch(clock, "9"), status=BatchStatus.FAILED)
    batches.save(failed, 0)
    assert made("a") == "a"


def test_counts_are_those_of_the_jobs_while_it_is_open(
    batches: RequestBatches, clock: FakeClock, ledger: Ledger
) -> None:
    store = JobStore(ledger)
    batches.add(batch(clock))
    batches.save(batch(clock, status=BatchStatus.IN_PROGRESS, total=4), 0)
    ids = add(store, 3, parent_id="1")
    store.finish(claim(store, ids[:1]))
    store.cancel(ids[1:2])
    found = batches.get("1", "ada")
    assert found is not None
    assert (found.total, found.completed, found.failed) == (4, 1, 1)
    assert batches.open_jobs("1", "", 9) == ids[2:]


def test_jobs_of_another_parent_are_never_a_batchs_whatever_their_keys(batches: RequestBatches, ledger: Ledger) -> None:
    store = JobStore(ledger)
    [own] = add(store, parent_id="1", idempotency_key="1:1")
    add(store, idempotency_key="1:2")
    assert batches.outcomes("1", ["1:1", "1:2", "1:3"]) == {"1:1": (own, None)}


def test_retention_keeps_an_open_batchs_jobs_and_the_sweep_its_file(
    batches: RequestBatches, clock: FakeClock, ledger: Ledger
) -> None:
    store = JobStore(ledger)
    batches.add(batch(clock))
    store.finish(claim(store, add(store, parent_id="1")))
    clock.forward(100)

    def used() -> list[str]:
        return [row.ref for row in ledger.rows(USED, refs=[BLOB])]

    batches.drop_ended(50)
    assert (store.sweeps.purge(50), used()) == (0, [BLOB])
    batches.save(batch(clock, status=BatchStatus.COMPLETED, created_at=clock() - 100), 0)
    assert (store.sweeps.purge(50), used()) == (1, [])
    assert batches.list("ada", "", 5) != []
    batches.drop_ended(50)
    assert batches.list("ada", "", 5) == []
