"""Blobs that nothing refers to go, after their grace time, and no others: whoever stores one of them again keeps it."""

import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from forebay.contract.job import JobError
from forebay.contract.model import ModelVersion
from forebay.contract.requests.shards import ShardOutcome, WrittenFile
from forebay.contract.settings import Settings
from forebay.contract.signature import Signature
from forebay.datasets.writing.folder import OutputFolder
from forebay.storage.blobs import sweep
from forebay.storage.blobs.store import FOLDERS, BlobStore
from forebay.storage.blobs.sweep import BlobSweep, Freed
from forebay.storage.jobs.records import Finished
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.migrate import upgrade
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.workers import WorkerRegistry
from forebay.worker.parent.children import ChildMonitor
from forebay.worker.parent.context import ParentContext
from forebay.worker.parent.metrics import WorkerMetrics
from forebay.worker.parent.store_sweep import COPY_GRACE_S, StoreSweepLoop
from support.batches import ROWS, MadeBatch
from support.jobs import add
from support.query_plan import query_plan
from support.s3 import open_bucket
from support.waiting import FakeClock, wait_until

GRACE_S = 3600.0


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path / "blobs"))


@pytest.fixture
def sweeper(ledger: Ledger, blobs: BlobStore) -> BlobSweep:
    return BlobSweep(ledger, blobs, GRACE_S)


def freed(sweeper: BlobSweep) -> Freed:
    return sweeper.sweep(60)


def register(ledger: Ledger, artifact: str) -> ModelVersion:
    return ModelRegistry(ledger).register(ModelVersion("m", 0, "python", artifact, "file", 1, Signature()))


def test_what_anything_refers_to_stays_and_the_rest_goes_after_its_grace_time(
    store: JobStore, ledger: Ledger, blobs: BlobStore, sweeper: BlobSweep, clock: FakeClock, tmp_path: Path
) -> None:
    ref = {name: blobs.put(name.encode()) for name in ("input", "result", "artifact", "checkpoint", "nobody's")}
    waiting, done = add(store, 1, input=None, input_ref=ref["input"]) + add(store)
    [claimed] = store.claim([done], "w", 60)
    store.finish([Finished(done, claimed.attempt, None, ref["result"])])
    register(ledger, ref["artifact"])
    with ledger.write() as connection:
        statement = (
            "INSERT INTO checkpoints (job_id, step, epoch, attempt, blob, bytes, at) VALUES (:id, 1, 1, 1, :blob, 1, 0)"
        )
        connection.execute(text(statement), {"id": waiting, "blob": ref["checkpoint"]})
    left = tmp_path / "blobs" / ".tmp" / "left by a writer that died"
    left.write_bytes(b"half")
    assert freed(sweeper) == Freed()
    clock.forward(GRACE_S - 1)
    assert freed(sweeper) == Freed()
    clock.forward(1)
    assert freed(sweeper) == Freed(2, len("nobody's") + len("half"))
    assert not left.exists()
    assert [name for name in ref if not blobs.has(ref[name])] == ["nobody's"]
    with ledger.write() as connection:
        connection.execute(text("DELETE FROM jobs"))
    ModelRegistry(ledger).delete("m/1")
    clock.forward(GRACE_S)
    assert freed(sweeper) == Freed(), "that nothing refers to them is only known from now on"
    clock.forward(GRACE_S)
    assert freed(sweeper).blobs == 4
    with ledger.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM unused_blobs WHERE folder <> 'ledger'")).scalar() == 0


def test_what_is_stored_again_is_kept_for_another_grace_time(
    blobs: BlobStore, sweeper: BlobSweep, clock: FakeClock
) -> None:
    ref = blobs.put(b"an input that two submit")
    freed(sweeper)
    clock.forward(GRACE_S)
    assert blobs.put(b"an input that two submit") == ref
    assert freed(sweeper) == Freed()
    clock.forward(GRACE_S)
    assert freed(sweeper).blobs == 1


def test_what_a_row_refers_to_at_the_last_moment_stays(
    store: JobStore, blobs: BlobStore, sweeper: BlobSweep, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = blobs.put(b"a slow submit's")
    freed(sweeper)
    clock.forward(GRACE_S)
    real = blobs.remove_unused
    monkeypatch.setattr(
        blobs, "remove_unused", lambda *a: (add(store, 1, input=None, input_ref=ref), real(*a))[1]
    )  # fmt: skip
    assert freed(sweeper) == Freed()
    assert blobs.get(ref) == b"a slow submit's"


def test_who_stores_a_blob_while_it_is_removed_has_it_afterwards(blobs: BlobStore) -> None:
    ref = blobs.put(b"wanted again")
    stored: list[str] = []
    thread = threading.Thread(target=lambda: stored.append(blobs.put(b"wanted again")))

    def used(_: Sequence[str]) -> list[str]:
        thread.start()
        waits = threading.Event()
        assert not waits.wait(0.3)
        assert not stored, "it waits for the removal"
        return []

    blobs.drop([ref], used)
    thread.join(60)
    assert stored == [ref]
    assert blobs.get(ref) == b"wanted again"


def test_a_store_that_two_ledgers_share_is_left_alone(
    blobs: BlobStore, sweeper: BlobSweep, clock: FakeClock, tmp_path: Path
) -> None:
    blobs.put(b"whose is it?")
    freed(sweeper)
    with closing(Ledger(f"sqlite:///{tmp_path / 'other.db'}", create=True)) as other:
        upgrade(other)
        assert freed(BlobSweep(other, blobs, 0)) == Freed()
        clock.forward(GRACE_S)
        assert freed(sweeper) == Freed()
        names = sorted((tmp_path / "blobs" / ".ledgers").iterdir())
        assert len(names) == 2
    for path in names:
        path.unlink()
    assert freed(sweeper).blobs == 1, "each ledger keeps its name"
    assert [path.name for path in (tmp_path / "blobs" / ".ledgers").iterdir()] == [sweeper._name()]


def test_a_sweep_is_bounded_and_goes_on_where_it_ended(
    blobs: BlobStore, sweeper: BlobSweep, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "AT_ONCE", 2)
    for n in range(40):
        blobs.put(b"%d" % n)
    freed(sweeper)
    clock.forward(GRACE_S)
    sizes = [sweeper.sweep(0.0).blobs for _ in range(3 * len(FOLDERS))]
    assert sum(sizes) == 40
    assert max(sizes) <= 2, "at most one portion of one folder"


def test_an_index_tells_who_refers_to_a_blob(sqlite_ledger: Ledger) -> None:
    plan = query_plan(sqlite_ledger, sweep.USED, refs=["sha256:" + "a" * 64])
    assert "USING COVERING INDEX ix_jobs_input_ref" in plan
    assert "USING COVERING INDEX ix_jobs_result_ref" in plan
    assert "SCAN jobs" not in plan


def test_blobs_in_s3_go_too(sqlite_ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr(sqlite_ledger, "now", clock)
    with open_bucket(monkeypatch) as bucket:
        blobs = BlobStore(f"{bucket}/blobs")
        kept, gone = blobs.put(b"kept"), blobs.put(b"gone")
        add(JobStore(sqlite_ledger), 1, input=None, input_ref=kept)
        sweeper = BlobSweep(sqlite_ledger, blobs, GRACE_S)
        assert freed(sweeper) == Freed()
        clock.forward(GRACE_S)
        assert freed(sweeper) == Freed(1, 4)
        assert not blobs.has(gone)
        assert blobs.get(kept) == b"kept"


def test_a_machines_copies_of_artifacts_go_with_their_versions(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    settings = Settings.load({"FOREBAY_HOME": str(tmp_path), "FOREBAY_WORKER_NAME": "w"})
    clock, ledger = FakeClock(), sqlite_ledger
    context = ParentContext(
        settings, JobStore(ledger), WorkerRegistry(ledger), ChildMonitor(settings), WorkerMetrics("cpu")
    )  # fmt: skip
    loop = StoreSweepLoop(context, clock)
    loop.sweep_copies()  # nothing is there yet
    copies = tmp_path / "artifacts"
    used, gone, unpacked = "a" * 64, "b" * 64, f"{'c' * 64}.d"
    (copies / unpacked / "deep").mkdir(parents=True)
    for name in (used, gone, f".{used}.0123", f"{unpacked}/deep/file"):
        (copies / name).write_bytes(b"weights")
    register(ledger, f"sha256:{used}")
    loop.sweep_copies()
    clock.forward(COPY_GRACE_S - 1)
    loop.sweep_copies()
    assert len(list(copies.iterdir())) == 4
    clock.forward(1)
    loop.sweep_copies()
    assert [path.name for path in copies.iterdir()] == [used]


def test_a_worker_counts_what_it_has_removed(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    settings = Settings.load(
        {"FOREBAY_HOME": str(tmp_path), "FOREBAY_WORKER_NAME": "w", "FOREBAY_BLOB_GRACE_S": "0.001"}
    )
    BlobStore(settings.blobs).put(b"12345")
    metrics = WorkerMetrics("cpu")
    context = ParentContext(
        settings, JobStore(sqlite_ledger), WorkerRegistry(sqlite_ledger), ChildMonitor(settings), metrics
    )  # fmt: skip
    loop = StoreSweepLoop(context)
    loop.sweep_blobs()
    wait_until(
        lambda: (loop.sweep_blobs(), metrics.snapshot().counters["blob_bytes_removed_total"][()] == 5)[1], "it goes"
    )


def test_what_attempts_of_a_batch_that_ended_badly_have_left_is_removed_but_for_what_its_retry_needs(
    sqlite_ledger: Ledger, tmp_path: Path
) -> None:
    settings = Settings.load({"FOREBAY_HOME": str(tmp_path), "FOREBAY_WORKER_NAME": "w"})
    jobs = JobStore(sqlite_ledger)
    loop = StoreSweepLoop(
        ParentContext(settings, jobs, WorkerRegistry(sqlite_ledger), ChildMonitor(settings), WorkerMetrics("cpu"))
    )
    batch = MadeBatch(sqlite_ledger, 4, output=str(tmp_path / "out"), max_attempts=5)
    works = [work for _, work in batch.claim([0, 1, 2])]
    files = [work.temporary(f"{work.part}.parquet") for work in works]
    others = ["_temporary/0123456789abcdef/of-another-batch", f"_temporary/{batch.id}/nobody-knows"]
    for name in [*files, *others]:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(name)

    def left() -> list[str]:
        found = (tmp_path / "out").rglob("*")
        return sorted(str(path.relative_to(tmp_path / "out")) for path in found if path.is_file())

    part = WrittenFile(f"{works[0].part}.parquet", files[0], ROWS, 4096, "0" * 64)
    assert batch.store.finish(works[0], ShardOutcome(ROWS, 0, 2.0, part))
    jobs.free_crashed([works[1].id], batch.worker, "it died")
    loop.sweep_outputs()
    jobs.cancel([batch.id])
    loop.sweep_outputs()
    assert left() == sorted([*files, *others]), "a shard runs"
    batch.store.stop(works[2])
    loop.sweep_outputs()
    assert left() == sorted([files[0], *others]), (
        "the first shard has succeeded: its worker died before it named the file"
    )

    jobs.retry(batch.id)
    [claimed] = jobs.claim([batch.id], batch.worker, 30)
    batch.store.start(claimed, batch.request)
    batch.store.parents.hand_off(claimed)
    [(_, again)] = batch.claim([1])
    late, now = works[1].temporary("late.parquet"), again.temporary(f"{again.part}.parquet")
    for name in (late, now):
        (tmp_path / "out" / name).write_text(name)
    abandoned = batch.store.queries.abandoned([files[0], late, now, *others])
    assert abandoned == [late], "what runs again has another attempt, and keeps its files"
    batch.fail([2, 3], JobError("InvalidInput", "no"))
    batch.jobs.finish([Finished(again.id, again.attempt, error=JobError("InvalidInput", "no"))])
    batch.store.parents.fail(batch.id, claimed.attempt, JobError("ShardsFailed", "no"), 0, 1)
    loop.sweep_outputs()
    assert left() == sorted([files[0], *others]), "it has ended again, and is seen to again"


def test_the_folders_of_a_batch_that_left_nothing_needed_go_too(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    batch = MadeBatch(sqlite_ledger, 1, output=str(tmp_path / "out"))
    [(_, work)] = batch.claim([0])
    folder = OutputFolder(str(tmp_path / "out"))
    with folder.create(work.temporary("part.parquet")) as sink:
        sink.write(b"half")
    batch.jobs.finish([Finished(work.id, work.attempt, error=JobError("InvalidInput", "no"))])
    batch.jobs.cancel([batch.id])
    names = folder.temporary(batch.id)
    folder.remove_temporary(batch.id, batch.store.queries.abandoned(names))
    assert list((tmp_path / "out").iterdir()) == []
    assert folder.temporary(batch.id) == []
