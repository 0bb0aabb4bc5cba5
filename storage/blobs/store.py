"""Content-addressed blobs: `sha256:<hex>` names bytes, through fsspec, in a local folder or any object store.

A blob is written to a temporary name and put in place whole; what is read is checked against its name. Who refers to a
blob, and when it may go, is for others to know.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import structlog

from forebay.contract.errors import (
    BlobCorrupt,
    BlobMissing,
    BlobStoreFull,
    BlobUnavailable,
    ForebayError,
    InvalidInput,
    MissingExtra,
    ModelRefused,
)
from forebay.contract.places import make_private_folder, refuse_unshared

log = structlog.get_logger()

FULL = (errno.ENOSPC, errno.EDQUOT)
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

    def put(self, data: bytes) -> str:
        """Store the bytes and give their name."""
        digest = hashlib.sha256(data).hexdigest()
        with self._clear_errors("write"):
            self._place(digest, len(data), lambda temporary: self._fs.pipe_file(temporary, data))
        return f"sha256:{digest}"

    def put_file(self, path: Path) -> str:
        """Store a local file's content without holding it in memory, and give its name."""
        digest = file_digest(path)
        with self._clear_errors("write"):
            self._place(digest, path.stat().st_size, lambda temporary: self._fs.put_file(str(path), temporary))
        return f"sha256:{digest}"

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
        """Whether there is such a blob; its content is not looked at."""
        with self._clear_errors("read"):
            return bool(self._fs.exists(self._path(_digest(ref))))

    def delete(self, ref: str) -> None:
        """Remove a blob; one that is not there is no error."""
        with self._clear_errors("delete"):
            path = self._path(_digest(ref))
            if self._fs.exists(path):
                self._fs.rm_file(path)

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

    def _place(self, digest: str, size: int, write: Any) -> None:
        path = self._path(digest)
        if self._is_whole(path, digest, size):
            return
        temporary = f"{self._root}/.tmp/{digest}.{secrets.token_hex(6)}"
        if self._local:
            make_private_folder(Path(self._root))
        self._fs.makedirs(f"{self._root}/.tmp", exist_ok=True)
        self._fs.makedirs(f"{self._root}/{digest[:2]}", exist_ok=True)
        self._write(write, temporary, path)

    def _is_whole(self, path: str, digest: str, size: int) -> bool:
        """Whether the blob is there and what its name says: one that a power cut or a disk has damaged is written anew."""
        if not self._fs.exists(path) or self._fs.size(path) != size:
            return False
        with self._fs.open(path, "rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == digest
        if not whole:
            log.warning("blob_mended", blobs=self.url, blob=f"sha256:{digest}")
        return whole

    def _write(self, write: Any, temporary: str, path: str) -> None:
        try:
            write(temporary)
            self._sync(temporary)
            self._fs.mv(temporary, path)
            self._sync(path.rpartition("/")[0])
            self._sync(self._root)  # where that folder may be new
        except BaseException:
            if self._fs.exists(temporary):
                self._fs.rm_file(temporary)
            raise

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


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack_folder(folder: Path, target: Path) -> None:
    """A folder as a tar that depends on names and contents only, so that equal folders are equal blobs."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            info.size, info.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                tar.addfile(info, file)


def unpack_folder(archive: Path, target: Path) -> Path:
    """The reverse, whole or not at all; ModelRefused for a member that would leave `target`, and for what is no tar."""
    if target.is_dir():
        return target
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    try:
        temporary.mkdir()
        with tarfile.open(archive, "r:") as tar:
            tar.extractall(temporary, _plain_members(tar), filter="data")
        temporary.rename(target)
    except tarfile.TarError as error:
        raise ModelRefused(
            f"the folder's archive cannot be unpacked safely: {error}; register the folder again"
        ) from error
    except OSError:
        if not target.is_dir():  # another process may have unpacked the same archive meanwhile
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _plain_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Files and folders only: `pack_folder` makes nothing else, and Python's own filter has been led astray by links before."""
    for member in tar:
        if not (member.isdir() or (member.isreg() and not member.issparse())):
            raise tarfile.TarError(f"{member.name!r} is neither a file nor a folder")
        yield member


def _digest(ref: str) -> str:
    match = _REF.fullmatch(ref)
    if match is None:
        raise InvalidInput(f"{ref!r} is not a blob; a blob is named sha256:<64 hex digits>")
    return match[1]
