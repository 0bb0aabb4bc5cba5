"""Blobs are what their names say, whole or not there; folders become equal blobs, and never climb out again."""

import errno
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from forebay.contract.errors import (
    BlobCorrupt,
    BlobMissing,
    BlobStoreFull,
    BlobUnavailable,
    InvalidInput,
    MissingExtra,
    ModelRefused,
    Transient,
)
from forebay.storage.blobs.folders import pack_folder, unpack_folder
from forebay.storage.blobs.store import CHUNK, LOCK, BlobStore, file_digest

REF_OF_NOTHING = f"sha256:{hashlib.sha256(b'never stored').hexdigest()}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def blobs(root: Path) -> BlobStore:
    return BlobStore(root.as_uri())


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)


@pytest.mark.parametrize("data", [b"", b"x", os.urandom(3 << 20)], ids=["empty", "small", "3 MiB"])
def test_bytes_come_back_under_their_checksum(blobs: BlobStore, data: bytes) -> None:
    ref = blobs.put(data)
    assert ref == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert blobs.get(ref) == data


def test_a_file_is_stored_as_its_bytes_are_and_fetched_to_where_it_is_wanted(blobs: BlobStore, tmp_path: Path) -> None:
    source, target = tmp_path / "model.pt2", tmp_path / "deep" / "down" / "model.pt2"
    source.write_bytes(b"weights")
    assert blobs.put_file(source) == blobs.put(b"weights")
    assert blobs.fetch(blobs.put_file(source), target) == target
    assert target.read_bytes() == b"weights"
    assert files(target.parent) == [target]


def test_equal_bytes_are_stored_once(blobs: BlobStore, root: Path) -> None:
    assert blobs.put(b"same") == blobs.put(b"same")
    assert len(files(root)) == 1


def test_a_store_knows_what_another_one_at_the_same_place_has_stored(blobs: BlobStore, root: Path) -> None:
    assert BlobStore(root.as_uri()).get(blobs.put(b"shared")) == b"shared"


@pytest.mark.parametrize("damage", [b"", b"weightZ", b"weights and more"], ids=["emptied", "changed", "longer"])
def test_a_damaged_blob_is_never_given_out(blobs: BlobStore, root: Path, tmp_path: Path, damage: bytes) -> None:
    ref = blobs.put(b"weights")
    files(root)[0].write_bytes(damage)
    with pytest.raises(BlobCorrupt, match=ref):
        blobs.get(ref)
    with pytest.raises(BlobCorrupt, match=ref):
        blobs.fetch(ref, tmp_path / "there" / "model.pt2")
    assert files(tmp_path / "there") == []


@pytest.mark.parametrize("damage", [b"", b"weightZ", b"weights and more"], ids=["emptied", "changed", "longer"])
def test_storing_again_mends_a_damaged_blob(blobs: BlobStore, root: Path, tmp_path: Path, damage: bytes) -> None:
    ref = blobs.put(b"weights")
    files(root)[0].write_bytes(damage)
    assert blobs.get(blobs.put(b"weights")) == b"weights"
    files(root)[0].write_bytes(damage)
    (tmp_path / "model").write_bytes(b"weights")
    assert blobs.put_file(tmp_path / "model") == ref
    assert blobs.get(ref) == b"weights"


def on_write(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, before: Callable[[], None]) -> None:
    """Have something happen before each piece of a blob is written."""
    real = blobs._fs.open

    def opened(path: str, mode: str = "rb") -> Any:
        file = real(path, mode)
        if mode == "wb":
            write = file.f.write
            monkeypatch.setattr(file, "write", lambda piece: (before(), write(piece))[1], raising=False)
        return file

    monkeypatch.setattr(blobs._fs, "open", opened)


def raising(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_a_write_that_breaks_off_leaves_nothing(blobs: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def break_off() -> None:
        if seen:
            raise OSError(28, "No space left on device")
        seen.append(b"")

    with monkeypatch.context() as patch:
        on_write(blobs, patch, break_off)
        with pytest.raises(BlobUnavailable, match="No space left on device"):
            blobs.put(b"too ", b"much")
    assert files(root) == []
    assert blobs.get(blobs.put(b"too much")) == b"too much"


def test_a_blob_is_in_place_only_when_it_is_whole(
    blobs: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    on_write(blobs, monkeypatch, lambda: seen.append([p for p in files(root) if ".tmp" not in p.parts]))
    ref = blobs.put(b"who", b"le")
    assert seen == [[], []]
    assert [p.name for p in files(root)] == [ref.removeprefix("sha256:")]


def test_an_array_that_is_changed_while_it_is_stored_gives_no_damaged_blob(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(3 * CHUNK)
    on_write(blobs, monkeypatch, lambda: data.__setitem__(slice(None), os.urandom(len(data))))
    assert len(blobs.get(blobs.put(memoryview(data)))) == len(data)


def test_many_threads_may_store_the_same_and_different_bytes_at_once(blobs: BlobStore, root: Path) -> None:
    contents = [b"%d" % (i % 10) * 10_000 for i in range(80)]
    with ThreadPoolExecutor(16) as pool:
        refs = list(pool.map(blobs.put, contents))
        back = list(pool.map(blobs.get, refs))
    assert back == contents
    assert len(files(root)) == 10


@pytest.mark.parametrize(
    "ref",
    ["", "sha256:", "sha256:../../etc/passwd", f"sha256:{'a' * 63}", f"sha256:{'A' * 64}", f"sha256:{'a' * 64}\n",
     f"md5:{'a' * 64}", "/etc/passwd", f"sha256:{'a' * 64}/../x"],
)  # fmt: skip
def test_what_is_no_blobs_name_reaches_no_file(blobs: BlobStore, tmp_path: Path, ref: str) -> None:
    for use in (
        blobs.get,
        lambda name: blobs.drop([name], lambda _: []),
        lambda name: blobs.fetch(name, tmp_path / "target"),
    ):
        with pytest.raises(InvalidInput, match="is not a blob"):
            use(ref)
    assert files(tmp_path) == []


def test_a_blob_that_is_not_there_says_which_and_where(blobs: BlobStore, tmp_path: Path) -> None:
    blobs.put(b"another")
    with pytest.raises(BlobMissing, match=REF_OF_NOTHING.removeprefix("sha256:")) as caught:
        blobs.get(REF_OF_NOTHING)
    assert blobs.url in str(caught.value)
    with pytest.raises(BlobMissing):
        blobs.fetch(REF_OF_NOTHING, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_blob_in_a_folder_that_is_not_there_may_come_back(tmp_path: Path) -> None:
    with pytest.raises(BlobUnavailable) as caught:
        BlobStore((tmp_path / "unmounted").as_uri()).get(REF_OF_NOTHING)
    assert isinstance(caught.value, Transient)


def test_a_blob_can_be_deleted_twice(blobs: BlobStore, root: Path) -> None:
    ref = blobs.put(b"gone")
    blobs.drop([ref], lambda _: [])
    blobs.drop([ref], lambda _: [])
    assert files(root) == []


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    blobs = BlobStore((tmp_path / "file" / "blobs").as_uri())
    with pytest.raises(BlobUnavailable, match="cannot write a blob"):
        blobs.check()


def test_a_store_that_works_passes_its_check(blobs: BlobStore) -> None:
    blobs.check()
    assert blobs.get(f"sha256:{hashlib.sha256(b'forebay').hexdigest()}") == b"forebay"


def test_an_unknown_kind_of_store_is_refused_by_its_url() -> None:
    with pytest.raises((InvalidInput, MissingExtra), match="nonsense://bucket"):
        BlobStore("nonsense://bucket")


def make_folder(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    return folder


def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", "config.json", "1_Pooling/config.json", "deep/er/x.bin", "ä ü.txt")
    pack_folder(folder, tmp_path / "model.tar")
    back = unpack_folder(tmp_path / "model.tar", tmp_path / "back")
    assert [p.relative_to(back) for p in files(back)] == [p.relative_to(folder) for p in files(folder)]
    assert all((back / p.relative_to(folder)).read_bytes() == p.read_bytes() for p in files(folder))


def test_equal_folders_are_equal_archives_whenever_and_however_they_were_made(tmp_path: Path) -> None:
    one = make_folder(tmp_path / "one", "a", "b/c")
    two = make_folder(tmp_path / "two", "b/c", "a")
    os.utime(two / "a", (1, 1))
    (two / "a").chmod(0o600)
    pack_folder(one, tmp_path / "one.tar")
    pack_folder(two, tmp_path / "two.tar")
    assert file_digest(tmp_path / "one.tar") == file_digest(tmp_path / "two.tar")


def test_another_name_or_content_is_another_archive(tmp_path: Path) -> None:
    digests = set()
    for i, (name, content) in enumerate([("a", "x"), ("b", "x"), ("a", "y")]):
        folder = make_folder(tmp_path / str(i), name)
        (folder / name).write_text(content)
        pack_folder(folder, tmp_path / f"{i}.tar")
        digests.add(file_digest(tmp_path / f"{i}.tar"))
    assert len(digests) == 3


def test_an_empty_folder_comes_back_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    pack_folder(tmp_path / "empty", tmp_path / "empty.tar")
    assert list(unpack_folder(tmp_path / "empty.tar", tmp_path / "back").iterdir()) == []


def test_what_is_unpacked_already_is_left_as_it_is(tmp_path: Path) -> None:
    pack_folder(make_folder(tmp_path / "model", "a"), tmp_path / "model.tar")
    back = unpack_folder(tmp_path / "model.tar", tmp_path / "back")
    (back / "a").write_text("kept")
    assert (unpack_folder(tmp_path / "model.tar", back) / "a").read_text() == "kept"


def test_many_may_unpack_the_same_archive_at_once(tmp_path: Path) -> None:
    pack_folder(make_folder(tmp_path / "model", *(f"f{i}" for i in range(50))), tmp_path / "model.tar")
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: unpack_folder(tmp_path / "model.tar", tmp_path / "back"), range(8)))
    assert set(folders) == {tmp_path / "back"}
    assert len(files(tmp_path / "back")) == 50
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "model", "model.tar"]


def hostile(kind: bytes = tarfile.REGTYPE, link: str = "", name: str = "evil") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "member",
    [
        hostile(name="../evil"),
        hostile(name="a/../../evil"),
        hostile(tarfile.SYMTYPE, "../../outside"),
        hostile(tarfile.SYMTYPE, "/etc/passwd"),
        hostile(tarfile.LNKTYPE, "../outside"),
        hostile(tarfile.SYMTYPE, "good"),
        hostile(tarfile.LNKTYPE, "good"),
        hostile(tarfile.GNUTYPE_SPARSE),
        hostile(tarfile.CHRTYPE),
        hostile(tarfile.FIFOTYPE),
    ],
    ids=[
        "climbing",
        "climbing later",
        "link up",
        "link to root",
        "hard link up",
        "link within",
        "hard link within",
        "sparse",
        "device",
        "pipe",
    ],
)
def test_a_member_that_would_leave_the_folder_refuses_the_whole_archive(
    tmp_path: Path, member: tarfile.TarInfo
) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        good = tarfile.TarInfo("good")
        good.size = 4
        tar.addfile(good, io.BytesIO(b"good"))
        tar.addfile(member)
    with pytest.raises(ModelRefused, match="cannot be unpacked safely"):
        unpack_folder(tmp_path / "evil.tar", tmp_path / "back")
    assert [p.name for p in tmp_path.iterdir()] == ["evil.tar"]


def test_an_absolute_name_stays_below_the_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.addfile(hostile(name="/forebay-test-evil"))
    back = unpack_folder(tmp_path / "evil.tar", tmp_path / "back")
    assert [p.name for p in files(back)] == ["forebay-test-evil"]
    assert not Path("/forebay-test-evil").exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + b"\0" * 600, b"junk" * 500], ids=["empty", "zip", "junk"])
def test_what_is_no_tar_is_refused_and_leaves_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.tar").write_bytes(data)
    with pytest.raises(ModelRefused, match="cannot be unpacked"):
        unpack_folder(tmp_path / "model.tar", tmp_path / "back")
    assert [p.name for p in tmp_path.iterdir()] == ["model.tar"]


def test_a_full_store_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore((tmp_path / "blobs").as_uri())
    on_write(store, monkeypatch, raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(BlobStoreFull, match="No space left"):
        store.put(b"data")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_local_blob_is_on_disk_before_its_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())), real(fd))[1]
    )
    store = BlobStore((tmp_path / "blobs").as_uri())
    digest = store.put(b"data").removeprefix("sha256:")
    root = tmp_path / "blobs"
    assert synced[0].startswith(str(root / ".tmp"))
    assert synced[1:] == [str(root / digest[:2]), str(root)]


def test_an_open_file_is_stored_from_its_beginning_and_read_in_pieces(blobs: BlobStore) -> None:
    data = os.urandom(2 * CHUNK + 5)
    file = io.BytesIO(data)
    file.seek(9)
    ref = blobs.put_stream(file)
    assert ref == blobs.put(data)
    pieces = list(blobs.chunks(ref))
    assert [len(piece) for piece in pieces] == [CHUNK, CHUNK, 5]
    assert b"".join(pieces) == data
    assert list(blobs.chunks(blobs.put_stream(io.BytesIO()))) == []


def test_a_damaged_blob_is_not_given_to_its_end(blobs: BlobStore, root: Path) -> None:
    ref = blobs.put(b"a" * (CHUNK + 1))
    [path] = files(root)
    path.write_bytes(b"a" * CHUNK + b"b")
    chunks = blobs.chunks(ref)
    assert len(next(chunks)) == CHUNK
    with pytest.raises(BlobCorrupt):
        next(chunks)
