"""The folder a batch writes to: whose it is, temporary files put in place whole, the manifest, and what lies there.

Names that begin with `_` are passed over by pyarrow, pandas and Spark, so that the parts alone make up the data set.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from fsspec.implementations.local import LocalFileSystem

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.datasets.formats.files import filesystem
from forebay.datasets.formats.store_errors import answering

P = ParamSpec("P")
T = TypeVar("T")

MARKER, MANIFEST, ERRORS, TEMPORARY = "_batch.json", "_manifest.json", "_errors", "_temporary"


def _answering(method: Callable[Concatenate[OutputFolder, P], T]) -> Callable[Concatenate[OutputFolder, P], T]:
    @wraps(method)
    def asked(self: OutputFolder, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with answering(self.url):
            return method(self, *args, **kwargs)

    return asked


class OutputFolder:
    """A local folder, or a prefix in an object store. Raises OSError or StoreUnavailable when the store does not answer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = filesystem(url)
        self._local = isinstance(self._fs, LocalFileSystem)

    @_answering
    def claim(self, batch: str, fingerprint: str) -> dict[str, Any] | None:
        """Make the folder this batch's, or give the marker of the batch that has it; InvalidInput when it holds other files."""
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
        """Make the folder this batch's, whosever it was."""
        self.write(MARKER, json.dumps({"batch": batch, "request": fingerprint}).encode() + b"\n")

    @_answering
    def marker(self) -> dict[str, Any] | None:
        """Which batch has the folder: `batch`, its id, and `request`, the fingerprint; None when none has."""
        try:
            found = json.loads(self._fs.cat_file(self._path(MARKER)))
            return {"batch": str(found["batch"]), "request": str(found["request"])}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"{shown(self.url)}: {MARKER} there is not Forebay's; name another folder") from error

    @_answering
    def release(self) -> None:
        """Leave the folder empty again: nothing was submitted after all."""
        self._fs.rm_file(self._path(MARKER))
        self.clear_temporary()

    @_answering
    def create(self, name: str) -> Sink:
        """A file to write, under a name relative to the folder."""
        path = self._path(name)
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        return Sink(self._fs.open(path, "wb"), self.url, self._local)

    @_answering
    def place(self, temporary: str, name: str) -> bool:
        """Give a finished temporary file its name, all at once; False when it is nowhere. Another may have done it meanwhile."""
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
        """A small file, whole or not at all."""
        temporary = f"{TEMPORARY}/{name}.{os.getpid()}"
        with self.create(temporary) as sink:
            sink.write(data)
        self.place(temporary, name)

    @_answering
    def read(self, name: str) -> bytes:
        """A small file; FileNotFoundError when it is not there."""
        data: bytes = self._fs.cat_file(self._path(name))
        return data

    @_answering
    def open(self, name: str) -> Any:
        """A file for reading."""
        return self._fs.open(self._path(name), "rb")

    @_answering
    def names(self) -> set[str]:
        """The parts, and the parts with errors, that are in place."""
        found = set()
        for folder, prefix in ((self._root, ""), (self._path(ERRORS), f"{ERRORS}/")):
            self._fs.invalidate_cache(folder)
            if self._fs.isdir(folder):
                found |= {prefix + str(path).rpartition("/")[2] for path in self._fs.ls(folder, detail=False)}
        return {name for name in found if name.rpartition("/")[2].startswith("part-")}

    @_answering
    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there do not matter."""
        for name in names:
            try:
                self._fs.rm_file(self._path(name))
            except FileNotFoundError:
                continue

    @_answering
    def clear_temporary(self) -> None:
        """Remove what killed attempts have left."""
        try:
            self._fs.rm(self._path(TEMPORARY), recursive=True)
        except FileNotFoundError:
            return

    def manifest(self) -> Mapping[str, Any] | None:
        """The manifest; None while there is none."""
        try:
            found: Mapping[str, Any] = json.loads(self.read(MANIFEST))
        except FileNotFoundError:
            return None
        return found

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


class Sink(io.RawIOBase):
    """A file that is written once, counted and hashed on the way; on the disk before it is closed, where it is local."""

    def __init__(self, file: Any, url: str, local: bool) -> None:
        super().__init__()
        self._file = file
        self._url = url
        self._sync = local
        self._digest = hashlib.sha256()
        self.bytes = 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """How many bytes were written."""
        return self.bytes

    def write(self, data: Any) -> int:
        """All of `data`."""
        view = memoryview(data)
        with answering(self._url):
            self._file.write(view)
        self._digest.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    def close(self) -> None:
        """Flush to the disk: a part that the ledger calls finished must outlive a power cut."""
        if self.closed:
            return
        if self._sync:
            self._file.flush()
            os.fsync(self._file.fileno())
        with answering(self._url):
            self._file.close()
        super().close()

    @property
    def sha256(self) -> str:
        """Of what was written."""
        return self._digest.hexdigest()


def _sync_folder(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
