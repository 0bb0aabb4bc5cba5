"""Content-addressed blobs: `sha256:<hex>` names bytes, through fsspec, in a local folder or any object store.

A blob is written to a temporary name and put in place whole; what is read is checked against its name. Who refers to a
blob is for others to know (sweep.py): what is stored again looks new, and so is not taken for what nobody has needed for long.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import fsspec

from forebay.contract.errors import (
    BlobCorrupt,
    BlobMissing,
    BlobStoreFull,
    BlobUnavailable,
    ForebayError,
    InvalidInput,
    MissingExtra,
)
from forebay.contract.places import make_private_folder, refuse_unshared
from forebay.storage.blobs.stored import StoredFile

CHUNK = 2**20
FULL = (errno.ENOSPC, errno.EDQUOT)
TEMPORARY, LOCK, LEDGERS = ".tmp", ".lock", ".ledgers"
FOLDERS = (*(f"{i:02x}" for i in range(256)), TEMPORARY)
_REF = re.compile(r"sha256:([0-9a-f]{64})")


class BlobStore:
    """Blobs below one fsspec URL. Thread-safe. Every method raises BlobUnavailable when the store does not answer, those that
    read raise BlobMissing when it does and has no such blob, those that write BlobStoreFull when it has no room.
    """

    def __init__(self, url: str) -> None:
        refuse_unshared(url)
        self.url = url
        try:
            self._fs, self._root = fsspec.url_to_fs(url)
        except ImportError as error:
            raise MissingExtra(f"the blob store {url} needs another package: {error}") from error
        except ValueError as error:
            raise InvalidInput(f"FOREBAY_BLOBS {url!r}: {error}") from error
        self._local = "file" in self._fs.protocol

    def put(self, *parts: bytes | bytearray | memoryview) -> str:
        """Store bytes, given in one part or in several, and give their name."""
        return self._store(piece for part in parts for piece in _pieces(memoryview(part)))

    def put_file(self, path: Path) -> str:
        """Store a local file's content without holding it in memory, and give its name."""
        with path.open("rb") as file:
            return self.put_stream(file)

    def put_stream(self, file: BinaryIO) -> str:
        """Store what an open file has from its beginning, without holding it in memory, and give its name."""
        file.seek(0)
        return self._store(iter(partial(file.read, CHUNK), b""))

    def location(self, ref: str) -> str:
        """The path or URL at which a blob lies, for readers of files; who reads it there does not check it."""
        path = self._path(_digest(ref))
        return path if self._local else str(self._fs.unstrip_protocol(path))

    def chunks(self, ref: str) -> Iterator[bytes]:
        """A blob piece by piece; BlobCorrupt before the last one when they are not what the name says."""
        with self._clear_errors("read"), self._fs.open(self._path(_digest(ref)), "rb") as file:
            digest, chunk = hashlib.sha256(), file.read(CHUNK)
            while chunk:
                digest.update(chunk)
                following = file.read(CHUNK)
                if not following:
                    self._verify(ref, digest.hexdigest())
                yield chunk
                chunk = following

    def get(self, ref: str) -> bytes:
        """The bytes of a blob; BlobCorrupt when they are not what the name says."""
        path = self._path(_digest(ref))
        with self._clear_errors("read"):
            data: bytes = self._fs.cat_file(path)
        self._verify(ref, hashlib.sha256(data).hexdigest())
        return data

    def fetch(self, ref: str, target: Path) -> Path:
        """Copy a blob to the local file `target`, whole and checked, and give that path."""
        path = self._path(_digest(ref))
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
        make_private_folder(target.parent)
        try:
            with self._clear_errors("read"):
                self._fs.get_file(path, str(temporary))
            self._verify(ref, file_digest(temporary))
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def has(self, ref: str) -> bool:
        """Whether there is such a blob; its content is not looked at. Whoever is removing it is waited for."""
        path = self._path(_digest(ref))
        with self._clear_errors("read"):
            if self._local:
                return self._touch(path)
            self._fs.invalidate_cache(path.rpartition("/")[0])
            return bool(self._fs.exists(path))

    def register(self, ledger: str) -> set[str]:
        """Note that this ledger has blobs here; the names of all that have."""
        root = f"{self._root}/{LEDGERS}"
        with self._clear_errors("write"):
            if self._local:
                make_private_folder(Path(self._root))
            self._fs.invalidate_cache(root)
            if not self._fs.exists(f"{root}/{ledger}"):
                self._fs.makedirs(root, exist_ok=True)
                self._fs.pipe_file(f"{root}/{ledger}", b"\n")
                self._fs.invalidate_cache(root)
            return {str(path).rpartition("/")[2] for path in self._fs.ls(root, detail=False)}

    def stored(self, folder: str) -> list[StoredFile]:
        """What lies in one of FOLDERS."""
        root = f"{self._root}/{folder}"
        with self._clear_errors("list"):
            try:
                if self._local:
                    with os.scandir(root) as entries:
                        return [StoredFile.local(folder, entry.name, entry.stat()) for entry in entries]
                self._fs.invalidate_cache(root)
                infos = [info for info in self._fs.ls(root, detail=True) if info["type"] == "file"]
                self._fs.invalidate_cache(root)  # what readers see must not come from it
            except FileNotFoundError:
                return []
        return [StoredFile.remote(f"{folder}/{i['name'].rpartition('/')[2]}", i) for i in infos]

    def remove_unused(
        self, found: Sequence[StoredFile], used: Callable[[Sequence[str]], Collection[str]]
    ) -> list[StoredFile]:
        """Remove those that are as they were found and that nobody uses: `used` gives those blobs that somebody does.

        In a local folder nobody can store one of them again meanwhile. An object store has no locks: there it is asked last.
        """
        with self._clear_errors("delete"), self._lock(fcntl.LOCK_EX):
            same = [file for file in found if self._look(file.path) == file]
            kept = used([file.ref for file in same])
            gone = [file for file in same if file.ref not in kept]
            for file in gone:
                self._fs.rm_file(f"{self._root}/{file.path}")
            return gone

    def drop(self, refs: Iterable[str], used: Callable[[Sequence[str]], Collection[str]]) -> None:
        """Remove those of these blobs that are there and that nobody uses."""
        with self._clear_errors("delete"):
            found = [self._look(f"{_digest(ref)[:2]}/{_digest(ref)}") for ref in refs]
        self.remove_unused([file for file in found if file is not None], used)

    def _look(self, path: str) -> StoredFile | None:
        folder, _, name = path.rpartition("/")
        try:
            if self._local:
                return StoredFile.local(folder, name, os.stat(f"{self._root}/{path}"))  # noqa: PTH116
            self._fs.invalidate_cache(f"{self._root}/{folder}")
            info = self._fs.info(f"{self._root}/{path}")
        except FileNotFoundError:
            return None
        return StoredFile.remote(path, info)

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        """Of a local folder: held by many who store, or by one who removes."""
        if not self._local:
            yield
            return
        with open(f"{self._root}/{LOCK}", "ab") as file:  # noqa: PTH123
            fcntl.flock(file, kind)
            yield

    def _touch(self, path: str) -> bool:
        """Have a local blob look new, whether it is there."""
        try:
            with self._lock(fcntl.LOCK_SH):
                os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def check(self) -> None:
        """BlobUnavailable unless a small blob can be written and read back."""
        self.get(self.put(b"forebay"))

    def _verify(self, ref: str, digest: str) -> None:
        if digest != _digest(ref):
            raise BlobCorrupt(
                f"blob {ref} in {self.url} is damaged: its checksum does not match; storing the same again mends it"
            )

    def _answers(self) -> bool:
        """Whether the store is there at all, and not a folder that is not mounted now."""
        try:
            return bool(self._fs.isdir(self._root))
        except Exception:  # noqa: BLE001 - whatever a driver raises
            return False

    def _path(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}"

    def _store(self, pieces: Iterable[bytes]) -> str:
        """Write and hash once, and put the whole in place; of a blob that is there already too, which mends a damaged one."""
        digest, temporary = hashlib.sha256(), f"{self._root}/{TEMPORARY}/{secrets.token_hex(16)}"
        with self._clear_errors("write"):
            if self._local:
                make_private_folder(Path(self._root))
            self._fs.makedirs(f"{self._root}/{TEMPORARY}", exist_ok=True)
            try:
                with self._fs.open(temporary, "wb") as file:
                    for piece in pieces:
                        digest.update(piece)
                        file.write(piece)
                self._sync(temporary)
                path = self._path(digest.hexdigest())
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                with self._lock(fcntl.LOCK_SH):
                    self._fs.mv(temporary, path)
                self._sync(path.rpartition("/")[0])
                self._sync(self._root)  # where that folder may be new
            except BaseException:
                if self._fs.exists(temporary):
                    self._fs.rm_file(temporary)
                raise
        return f"sha256:{digest.hexdigest()}"

    def _sync(self, path: str) -> None:
        """Have a local file or folder on disk: the ledger's row that names a blob outlives a power cut, so must the blob."""
        if self._local:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    @contextmanager
    def _clear_errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            kind = BlobMissing if verb == "read" and self._answers() else BlobUnavailable
            raise kind(f"cannot {verb} a blob in {self.url}: there is no {error.filename or error}") from error
        except Exception as error:
            # Drivers of remote stores raise what their HTTP libraries do, which share no class.
            if isinstance(error, ForebayError) or (self._local and not isinstance(error, OSError)):
                raise
            full = verb == "write" and getattr(error, "errno", None) in FULL
            raise (BlobStoreFull if full else BlobUnavailable)(
                f"cannot {verb} a blob in {self.url}: {error}"
            ) from error


def _pieces(part: memoryview) -> Iterator[bytes]:
    """Copies, so that what is hashed is what is written even when a caller changes its array meanwhile."""
    return (bytes(part[start : start + CHUNK]) for start in range(0, len(part), CHUNK))


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(ref: str) -> str:
    match = _REF.fullmatch(ref)
    if match is None:
        raise InvalidInput(f"{ref!r} is not a blob; a blob is named sha256:<64 hex digits>")
    return match[1]
