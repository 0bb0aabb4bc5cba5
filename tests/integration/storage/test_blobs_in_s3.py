"""The blob store in S3 does what it does in a folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from forebay.contract.errors import BlobCorrupt, BlobMissing, BlobUnavailable
from forebay.storage.blobs.store import BlobStore
from support.s3 import open_bucket
from support.servers import free_port


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with open_bucket(monkeypatch) as bucket:
        yield f"{bucket}/deep/blobs"


def test_what_is_stored_comes_back_until_it_is_deleted(url: str, tmp_path: Path) -> None:
    store = BlobStore(url)
    store.check()
    (tmp_path / "file").write_bytes(b"of a file")
    refs = [store.put(b"bytes"), store.put(b"bytes"), store.put(b""), store.put_file(tmp_path / "file")]
    assert refs[0] == refs[1]
    assert [store.get(ref) for ref in refs[1:]] == [b"bytes", b"", b"of a file"]
    assert store.fetch(refs[3], tmp_path / "copy").read_bytes() == b"of a file"
    assert len(s3fs.S3FileSystem().find(url)) == 4, "and that of check; none is left under a temporary name"
    store.drop([refs[0]], lambda _: [])
    store.drop([refs[0]], lambda _: [])
    assert not store.has(refs[0])
    with pytest.raises(BlobMissing):
        store.get(refs[0])


def test_a_blob_that_another_process_stored_is_found(url: str) -> None:
    reader, writer = BlobStore(url), s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    ref = reader.put(b"later")
    path = next(path for path in writer.find(url) if path.endswith(ref.removeprefix("sha256:")))
    reader.drop([ref], lambda _: [])
    assert not reader.has(ref)
    writer.pipe_file(path, b"later")
    assert reader.has(ref)
    assert reader.get(ref) == b"later"


def test_a_damaged_blob_is_told_and_mended(url: str) -> None:
    store = BlobStore(url)
    ref = store.put(b"whole")
    (path,) = s3fs.S3FileSystem().find(url)
    s3fs.S3FileSystem().pipe_file(path, b"wh_le")
    with pytest.raises(BlobCorrupt):
        store.get(ref)
    assert store.put(b"whole") == ref
    assert store.get(ref) == b"whole"


def test_a_store_that_is_away_is_told_from_one_that_lacks_a_blob(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = BlobStore(url).put(b"bytes")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    away = BlobStore(url)
    for ask in (lambda: away.get(ref), lambda: away.put(b"bytes"), away.check):
        with pytest.raises(BlobUnavailable, match="s3://bucket/deep/blobs"):
            ask()
