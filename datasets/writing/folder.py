"""A batch's output folder: which batch owns it, files that appear whole, the manifest, and which parts are there.

pyarrow, pandas and Spark ignore names that begin with `_`, so that only the parts make up the data set.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec
from fsspec.implementations.local import LocalFileSystem

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.manifest import Manifest
from forebay.datasets.formats.files import filesystem, store_errors

P = ParamSpec("P")
T = TypeVar("T")

MARKER, MANIFEST, ERRORS, TEMPORARY = "_batch.json", "_manifest.json", "_errors", "_temporary"


def _translates_errors(method: Callable[Concatenate[OutputFolder, P], T]) -> Callable[Concatenate[OutputFolder, P], T]:
    @wraps(method)
    def asked(self: OutputFolder, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with store_errors(self.url):
            return method(self, *args, **kwargs)

    return asked


class OutputFolder:
    """A local folder, or a prefix in an object store. Methods raise OSError, or StoreUnavailable when the store fails."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = filesystem(url)
        self._local = isinstance(self._fs, LocalFileSystem)

    @_translates_errors
    def claim(self, batch: str, fingerprint: str) -> dict[str, Any] | None:
        """Mark the folder as this batch's, or return the marker of the batch that owns it.

        InvalidInput when it holds other files or cannot be written.
        """
        try:
            marker = self.marker()
            if marker is not None:
                return marker
            if self._fs.exists(self._root) and (
                not self._fs.isdir(self._root) or self._fs.ls(self._root, detail=False)
            ):
                raise InvalidInput(f"the output {shown(self.url)} is not an empty folder; name another, or empty it")
            self.take_over(batch, fingerprint)
        except OSError as error:
            raise InvalidInput(f"the output {shown(self.url)} cannot be written: {error}") from error
        return None

    def take_over(self, batch: str, fingerprint: str) -> None:
        """Mark the folder as this batch's, whichever batch owned it."""
        self.write(MARKER, json.dumps({"batch": batch, "request": fingerprint}).encode() + b"\n")

    @_translates_errors
    def marker(self) -> dict[str, Any] | None:
        """The id of the batch that owns the folder, and its request's fingerprint; None when no batch does."""
        try:
            found = json.loads(self._fs.cat_file(self._path(MARKER)))
            return {"batch": str(found["batch"]), "request": str(found["request"])}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"{shown(self.url)}: {MARKER} there is not Forebay's; name another folder") from error

    @_translates_errors
    def release(self, batch: str) -> None:
        """Empty the folder again, since nothing was submitted; unless another batch has it by now."""
        if self.is_of(batch):
            self._fs.rm_file(self._path(MARKER))
            self.clear_temporary(batch)

    def is_of(self, batch: str) -> bool:
        """Whether the folder is this batch's; a worker that was frozen may wake when it has long been another's."""
        marker = self.marker()
        return marker is None or marker["batch"] == batch

    @_translates_errors
    def create(self, name: str) -> Sink:
        path = self._path(name)
        for last in (False, True):
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                return Sink(self._fs.open(path, "wb"), self.url, self._local)
            except FileNotFoundError:  # somebody has removed the folder meanwhile, which was empty
                if last:
                    raise
        raise AssertionError

    @_translates_errors
    def place(self, temporary: str, name: str) -> bool:
        """Give a finished temporary file its name, atomically where the store can. Placing it twice does no harm.

        False when there is no file of either name.
        """
        try:
            self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            if self._local:
                os.replace(self._path(temporary), self._path(name))  # noqa: PTH105
                _sync_folder(self._path(name).rpartition("/")[0])
            else:
                self._fs.mv(self._path(temporary), self._path(name))
        except FileNotFoundError:
            return self._is_there(name)
        return True

    def _is_there(self, name: str) -> bool:
        self._fs.invalidate_cache(self._path(name).rpartition("/")[0])
        return bool(self._fs.exists(self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        temporary = f"{TEMPORARY}/{name}.{secrets.token_hex(8)}"
        with self.create(temporary) as sink:
            sink.write(data)
        if not self.place(temporary, name):
            raise FileNotFoundError(f"{shown(self.url)}: {temporary} is gone before it could be named {name}")

    @_translates_errors
    def read(self, name: str) -> bytes:
        data: bytes = self._fs.cat_file(self._path(name))
        return data

    @_translates_errors
    def open(self, name: str) -> Any:
        return self._fs.open(self._path(name), "rb")

    @_translates_errors
    def names(self) -> set[str]:
        """The names of the parts, those with errors too, that are in place."""
        found = set()
        for folder, prefix in ((self._root, ""), (self._path(ERRORS), f"{ERRORS}/")):
            self._fs.invalidate_cache(folder)
            if self._fs.isdir(folder):
                found |= {prefix + str(path).rpartition("/")[2] for path in self._fs.ls(folder, detail=False)}
        return {name for name in found if name.rpartition("/")[2].startswith("part-")}

    @_translates_errors
    def remove(self, names: Iterable[str]) -> None:
        """Remove files, ignoring those that do not exist."""
        for name in names:
            try:
                self._fs.rm_file(self._path(name))
            except FileNotFoundError:
                continue

    @_translates_errors
    def clear_temporary(self, batch: str) -> None:
        """Remove what killed attempts of this batch have left behind, and nothing of anybody else."""
        with suppress(FileNotFoundError):
            self._fs.rm(self._path(f"{TEMPORARY}/{batch}"), recursive=True)
        with suppress(OSError):  # there is more in it, or it is no folder
            self._fs.rmdir(self._path(TEMPORARY))

    @_translates_errors
    def temporary(self, batch: str) -> list[str]:
        """The names of what attempts of this batch have written and nobody has put in place."""
        folder = self._path(f"{TEMPORARY}/{batch}")
        self._fs.invalidate_cache(folder)
        found = self._fs.ls(folder, detail=False) if self._fs.isdir(folder) else []
        return [f"{TEMPORARY}/{batch}/{str(path).rpartition('/')[2]}" for path in found]

    @_translates_errors
    def remove_temporary(self, batch: str, names: Iterable[str]) -> None:
        """Remove these of them, and the folders that are empty then."""
        self.remove(names)
        for folder in (f"{TEMPORARY}/{batch}", TEMPORARY):
            with suppress(OSError):
                self._fs.rmdir(self._path(folder))

    def manifest(self) -> Manifest | None:
        try:
            return msgspec.json.decode(self.read(MANIFEST), type=Manifest)
        except FileNotFoundError:
            return None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


class Sink(io.RawIOBase):
    """A file that is counted and hashed while it is written, and synced to disk when it is closed if it is local."""

    def __init__(self, file: Any, url: str, local: bool) -> None:
        super().__init__()
        self._file = file
        self._url = url
        self._sync = local
        self._digest = hashlib.sha256()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.bytes

    def write(self, data: Any) -> int:
        view = memoryview(data)
        with store_errors(self._url):
            self._file.write(view)
        self._digest.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    def close(self) -> None:
        if self.closed:
            return
        if self._sync:  # a part that the ledger calls finished must survive a power cut
            self._file.flush()
            os.fsync(self._file.fileno())
        with store_errors(self._url):
            self._file.close()
        super().close()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _sync_folder(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
