"""Files of the API in the ledger: whose they are, pages of them, until when, and the blobs that they hold."""

from dataclasses import replace
from pathlib import Path

import pytest

from forebay.storage.blobs.store import BlobStore
from forebay.storage.blobs.sweep import BlobSweep
from forebay.storage.files import FileRecord, FileStore
from forebay.storage.ledger.connection import Ledger
from support.waiting import FakeClock

FILE = FileRecord("file-1", "ada", "a.jsonl", "batch", 7, "sha256:" + "0" * 64, 5.0)


@pytest.fixture
def files(ledger: Ledger) -> FileStore:
    return FileStore(ledger)


def test_a_file_is_its_owners_alone(files: FileStore) -> None:
    files.add(FILE)
    assert files.get("file-1", "ada") == FILE
    assert files.get("file-1", "bob") is None
    assert files.list("bob", limit=10) == []
    assert not files.delete("file-1", "bob")
    assert files.delete("file-1", "ada")
    assert files.get("file-1", "ada") is None
    assert not files.delete("file-1", "ada")


def test_pages_go_on_behind_the_last_id_in_both_directions(files: FileStore) -> None:
    for i in range(5):
        files.add(replace(FILE, id=f"file-{i}", purpose="evals" if i == 2 else "batch"))

    def ids(**asked: object) -> list[str]:
        return [file.id[-1] for file in files.list("ada", **{"limit": 2} | asked)]  # type: ignore[arg-type]

    assert (ids(), ids(after="file-3"), ids(after="file-0")) == (["4", "3"], ["2", "1"], [])
    assert (ids(ascending=True), ids(ascending=True, after="file-1")) == (["0", "1"], ["2", "3"])
    assert ids(purpose="evals") == ["2"]
    assert ids(purpose="batch", after="file-3") == ["1", "0"]


def test_a_file_whose_time_is_over_is_gone_at_once_and_swept_later(files: FileStore, clock: FakeClock) -> None:
    files.add(replace(FILE, expires_at=clock() + 10))
    files.add(replace(FILE, id="file-2"))
    clock.forward(11)
    assert files.get("file-1", "ada") is None
    assert [file.id for file in files.list("ada", limit=9)] == ["file-2"]
    assert not files.delete("file-1", "ada")
    assert (files.drop_expired(), files.drop_expired()) == (1, 0)
    clock.forward(-11)
    assert files.get("file-1", "ada") is None


def test_a_blob_stays_while_a_file_lies_in_it(
    files: FileStore, ledger: Ledger, clock: FakeClock, tmp_path: Path
) -> None:
    blobs = BlobStore((tmp_path / "blobs").as_uri())
    ref = blobs.put(b"content")
    files.add(replace(FILE, blob=ref))
    sweep = BlobSweep(ledger, blobs, grace_s=10)

    def swept() -> int:
        sweep.sweep(60)
        clock.forward(11)
        return sweep.sweep(60).blobs

    assert swept() == 0
    files.delete("file-1", "ada")
    assert swept() == 1
    assert not blobs.has(ref)
