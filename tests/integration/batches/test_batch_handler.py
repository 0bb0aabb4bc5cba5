"""A child's batch handler on a real ledger, without a queue: how a batch starts, and each way in which its shards end."""

import errno
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakeredis import FakeRedis
from sqlalchemy import text

from forebay.contract.errors import BlobUnavailable
from forebay.contract.job import JobKind, JobState, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.requests.batch import BatchRequest, InputFile
from forebay.contract.requests.request import encode
from forebay.contract.settings import Settings
from forebay.contract.signature import Signature
from forebay.datasets.writing.parts import Part
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.records import NewJob
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.ceilings import CeilingStore
from forebay.storage.models.registry import ModelRegistry
from forebay.worker.child.runner import Runner
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.model_cache import ModelCache
from forebay.worker.execution.summary import Summary
from forebay.worker.kinds.batch import handler
from forebay.worker.shared_page import SharedPage

ROWS = 64
TAKE_OVER = "UPDATE jobs SET worker = 'other', attempt = attempt + 1 WHERE id = :id"


class Broker(FakeRedis):
    """Takes the place of Redis, in whose queues something waits."""

    def llen(self, key: str) -> int:
        return 1


class Dispatcher:
    """Remembers which jobs were sent."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def send_jobs(self, jobs: Sequence[Any]) -> None:
        self.ids += [job.id for job in jobs]


class Bench:
    """One runner, and a batch of 64 numbers in shards of 16; the model doubles them after `before`."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.before: Callable[[list[Any]], None] = lambda _: None
        self.on_load: Callable[[], None] = lambda: None
        ModelRegistry(ledger).register(ModelVersion("m", 0, "python", "", "none", 0, Signature(), max_batch_size=4))
        settings = Settings.load({"FOREBAY_HOME": str(folder), "FOREBAY_WORKER_NAME": "w"})
        cache = ModelCache(2**30, lambda _: None, "cpu", runtimes=lambda *_: self)
        blobs, ceilings, broker = (
            BlobStore((folder / "blobs").as_uri()),
            MemoryCeilings(CeilingStore(ledger, "cpu")),
            Broker(),
        )
        self.ledger, self.page, self.sent, self.output = ledger, SharedPage(), Dispatcher(), folder / "out"
        context = ChildContext(settings, ledger, blobs, broker, self.page, ChildMetrics(), ceilings, cache)  # type: ignore[arg-type]
        context.dispatcher = self.sent  # type: ignore[assignment]
        self.store, self.runner = context.jobs, Runner(context)
        self.coordinator = handler.BatchCoordinator(context, handler.BatchStore(ledger))
        np.save(folder / "x.npy", np.arange(ROWS, dtype=np.float64))
        file = InputFile(str(folder / "x.npy"), (folder / "x.npy").stat().st_size)
        request = BatchRequest((file,), str(self.output), "npy", {"x": ("array",)}, shard_rows=16)
        [self.batch] = new_ids(1)
        self.store.add([NewJob(self.batch, JobKind.BATCH, "m", 1, "cpu", input=encode(request))])

    def load(self, *_: Any) -> "Bench":
        self.on_load()
        return self

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        self.before(list(rows))
        return [2 * row for row in rows]

    def start(self) -> Summary:
        return self.runner.run([self.batch])

    def run_sent(self) -> Summary:
        """Run what was sent, until nothing more is."""
        total = Summary()
        while self.sent.ids:
            ids, self.sent.ids = self.sent.ids, []
            total += self.runner.run(ids)
        return total

    @property
    def state(self) -> JobState:
        return self.store.queries.get(self.batch).state


@pytest.fixture
def bench(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(handler, "GO_ON_S", 60.0)
    return Bench(ledger, tmp_path)


def raising(error: Exception) -> Callable[..., None]:
    def act(*_: Any) -> None:
        raise error

    return act


def test_a_batch_that_starts_runs_its_shards_and_succeeds(bench: Bench) -> None:
    summary = bench.start()
    assert (summary.succeeded, bench.state) == (4, JobState.SUCCEEDED)
    manifest = json.loads((bench.output / "_manifest.json").read_text())
    assert manifest["counts"] == {"total": ROWS, "completed": ROWS, "failed": 0}
    made = pa.concat_tables([pq.read_table(bench.output / part["name"]) for part in manifest["parts"]])
    assert sorted(made["output"].to_pylist()) == [2.0 * i for i in range(ROWS)]


def test_a_bad_row_is_an_error_of_its_own(bench: Bench) -> None:
    bench.before = lambda rows: raising(ValueError("seven"))() if 7.0 in rows else None
    assert bench.start().succeeded == 4
    assert json.loads((bench.output / "_manifest.json").read_text())["counts"]["failed"] == 1


def test_a_process_that_stops_releases_its_shards(bench: Bench) -> None:
    bench.before = lambda _: bench.page.stop()
    summary = bench.start()
    assert summary.released
    assert {bench.store.queries.get(id).state for id in summary.released} == {JobState.QUEUED}
    assert bench.state is JobState.RUNNING


def test_a_shard_whose_model_is_away_is_postponed_at_no_cost(bench: Bench) -> None:
    bench.on_load = raising(BlobUnavailable("503"))
    summary = bench.start()
    assert summary == Summary(postponed=summary.postponed)
    assert summary.postponed >= 1
    assert {bench.store.queries.get(id).attempt for id in bench.sent.ids} == {0}
    assert bench.state is JobState.RUNNING


def test_a_part_that_finds_no_room_costs_its_shard_no_attempt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Part, "close", lambda *_: raising(OSError(errno.ENOSPC, "No space left on device"))())
        summary = bench.start()
    assert summary == Summary(postponed=summary.postponed, rows=summary.rows, batches=summary.batches)
    assert summary.postponed >= 1
    assert {bench.store.queries.get(id).attempt for id in bench.sent.ids} == {0}


def test_shards_of_a_batch_that_was_canceled_are_stopped(bench: Bench) -> None:
    bench.before = lambda _: bench.store.cancel([bench.batch]) and None
    bench.start()
    assert bench.state is JobState.CANCELED
    assert bench.run_sent().succeeded == 0


def test_a_shard_that_another_worker_has_by_now_leaves_no_file(bench: Bench) -> None:
    taken: list[str] = []

    def lose(_: list[Any]) -> None:
        if not taken:
            taken.extend(id for id in bench.sent.ids if bench.store.queries.get(id).state is JobState.RUNNING)
            with bench.ledger.write() as connection:
                for id in taken:
                    connection.execute(text(TAKE_OVER), {"id": id})

    bench.before = lose
    summary = bench.start()
    assert summary.lost == len(taken) >= 1
    assert {bench.store.queries.get(id).worker for id in taken} == {"other"}
    assert len(list(bench.output.glob("part-*"))) == 4 - len(taken)


def test_a_worker_that_wakes_after_its_batch_has_ended_leaves_the_manifest_alone(bench: Bench) -> None:
    [frozen] = bench.store.claim([bench.batch], "frozen", 30)
    with bench.ledger.write() as connection:
        connection.execute(text("UPDATE jobs SET lease_until = 0 WHERE id = :id"), {"id": bench.batch})
    bench.store.sweeps.free_lapsed()
    bench.start()
    bench.run_sent()
    assert bench.state is JobState.SUCCEEDED
    before = (bench.output / "_manifest.json").read_bytes()
    assert not bench.coordinator.start(frozen)
    assert (bench.output / "_manifest.json").read_bytes() == before
    assert bench.state is JobState.SUCCEEDED


def test_a_batch_leaves_a_folder_alone_that_is_another_ones_by_now(bench: Bench) -> None:
    bench.output.mkdir()
    (bench.output / "_batch.json").write_text(json.dumps({"batch": "0" * 32, "request": "f"}))
    bench.start()
    error = bench.store.queries.get(bench.batch).error
    assert error is not None
    assert (error.type, "belongs to another batch" in error.message) == ("InvalidInput", True)
    assert [path.name for path in bench.output.iterdir()] == ["_batch.json"]
