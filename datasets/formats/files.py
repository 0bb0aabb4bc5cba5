"""Which files a data set consists of, and opening them: paths, globs, folders and URLs, through fsspec."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from forebay.contract.errors import ForebayError, InvalidInput, MissingExtra, StoreUnavailable
from forebay.contract.places import refuse_unshared
from forebay.contract.references import shown
from forebay.contract.requests.batch import MEDIA, InputFile
from forebay.datasets.formats.addresses import check_host, http_options

HASH_BYTES = 1 << 20
_GLOB = frozenset("*?[")
_CIRCLE = "circle"
_BUSY = (408, 425, 429)  # HTTP statuses below 500 that ask to try again
_LASTING = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
# Errors of aiohttp, botocore and requests for a connection that broke or could not be made.
_CONNECTION_ERRORS = {"ClientConnectionError", "ClientPayloadError", "ConnectionError", "HTTPClientError", "Timeout"}


def find_files(given: str | Path | Sequence[str | Path], suffixes: Sequence[str]) -> list[InputFile]:
    """The files that `given` names, each once: a path or URL, the sorted matches of a glob, or what lies in a folder.

    In a folder only files with one of `suffixes` count, at any depth, and no path with a name that begins with `_` or `.`, so
    that the output of one batch can be the input of the next. Symbolic links are followed. InvalidInput when there is no file,
    or one does not exist or is not a regular file.
    """
    several = [given] if isinstance(given, str | Path) else list(given)
    found = {file.path: file for one in several for file in _find(str(one), tuple(suffixes))}
    if not found:
        raise InvalidInput("the input names no file")
    return list(found.values())


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a path or URL, and the path in it."""
    check_host(url)
    try:
        fs, path = fsspec.url_to_fs(url, **http_options(url))
    except ImportError as error:
        raise MissingExtra(f"{shown(url)} needs another package: {error}") from error
    except ValueError as error:
        raise InvalidInput(f"{shown(url)} is not a path or URL: {error}") from error
    return fs, path


_remembered = cache(filesystem)


def _filesystem(url: str) -> tuple[Any, str]:
    # A relative path names another file once the process has changed its folder.
    stays = url.startswith("/") or ("://" in url and not url.startswith(("file:", "local:")))
    return _remembered(url) if stays else filesystem(url)


def absolute(url: str | Path) -> str:
    """A path or URL that means the same in every process of this machine: local paths in full, without `file://`."""
    text = str(Path(url).expanduser()) if isinstance(url, Path) or "://" not in url else url
    refuse_unshared(text)
    fs, path = _filesystem(text)
    return _named(fs, path)


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turns what fsspec's drivers raise when a store fails for a while into StoreUnavailable, which is Transient.

    Drivers pass on their libraries' errors. We tell those apart by what they carry, because none of the libraries need be
    installed. OSErrors with a number pass unchanged.
    """
    try:
        yield
    except ForebayError:
        raise
    except Exception as error:
        if not _may_pass(error):
            raise
        reason = " ".join(str(error).split()) or "no reason was given"
        raise StoreUnavailable(f"{shown(url)}: the store does not answer: {type(error).__name__}: {reason}") from error


@contextmanager
def open_file(path: str) -> Iterator[Any]:
    """A file to read, seekable if its store can seek.

    InvalidInput when it does not exist; StoreUnavailable when its store fails, now or while the file is read.
    """
    fs, inner = _filesystem(path)
    if isinstance(fs, LocalFileSystem):  # opened directly, since fsspec's reader holds the interpreter's lock
        with _opened(path, partial(open, inner, "rb")) as file:
            yield file
    else:
        with store_errors(path), _opened(path, partial(fs.open, inner, "rb")) as file:
            yield file


def _opened(path: str, opened: Callable[[], Any]) -> Any:
    try:
        return opened()
    except FileNotFoundError as error:
        _raise_refusal(error)
        raise InvalidInput(
            f"{shown(path)}: there is no such file here; every worker needs access to the input"
        ) from error


def _raise_refusal(error: BaseException) -> None:
    """Raise the refusal of a host that fsspec took for a missing file."""
    if isinstance(error.__cause__, InvalidInput):
        raise error.__cause__


def local_path(path: str) -> str | None:
    """The path of a local file; None for a file in another store."""
    fs, inner = _filesystem(path)
    return inner if isinstance(fs, LocalFileSystem) else None


def _find(url: str, suffixes: tuple[str, ...]) -> list[InputFile]:
    refuse_unshared(url)
    fs, path = _filesystem(str(Path(url).expanduser()) if "://" not in url else url)
    fs = _FollowingLinks() if isinstance(fs, LocalFileSystem) else fs
    try:
        with store_errors(url):
            return _listed(fs, path, url, suffixes)
    except FileNotFoundError as error:
        _raise_refusal(error)
        raise InvalidInput(f"{shown(url)}: there is no such file or folder") from error
    except OSError as error:
        raise InvalidInput(f"{shown(url)} cannot be read: {error}") from error


def _listed(fs: Any, path: str, url: str, suffixes: tuple[str, ...]) -> list[InputFile]:
    if _GLOB & set(path) and not fs.exists(path):
        found = fs.glob(path, detail=True)
        if not found:
            raise InvalidInput(f"no file matches {shown(url)}")
        return [_file(fs, info) for _, info in sorted(found.items()) if info["type"] != "directory"]
    if fs.isdir(path):
        return _below(fs, path, url, suffixes)
    return [_file(fs, fs.info(path))]


def _below(fs: Any, folder: str, url: str, suffixes: tuple[str, ...]) -> list[InputFile]:
    files = [
        _file(fs, info)
        for path, info in sorted(fs.find(folder, detail=True).items())
        if (path.lower().endswith(suffixes) or info["type"] == _CIRCLE) and not _is_hidden(path, folder)
    ]
    if not files:
        raise InvalidInput(f"the folder {shown(url)} holds no file with the ending {', '.join(suffixes)}")
    return files


def _is_hidden(path: str, folder: str) -> bool:
    inside = PurePosixPath(path[len(folder) :].lstrip("/"))
    return any(part.startswith(("_", ".")) for part in inside.parts)


def _file(fs: Any, info: dict[str, Any]) -> InputFile:
    name = _named(fs, info["name"])
    if isinstance(fs, LocalFileSystem) and info["type"] != "file":
        what = "a folder that holds it" if info["type"] == _CIRCLE else "nothing" if info["islink"] else ""
        raise InvalidInput(
            f"{shown(name)} is {'a symbolic link to ' + what if what else 'not a regular file'}; remove it"
        )
    if info.get("size") is None:
        raise InvalidInput(f"{shown(name)}: the store does not tell its size; copy it to one that does")
    return InputFile(name, int(info["size"]))


def _named(fs: Any, path: str) -> str:
    name = path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the file name {os.fsencode(name)!r} is not UTF-8; rename it") from error
    return name


class _FollowingLinks(LocalFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """Local files, with symbolic links taken for what they point to: fsspec leaves them out of folders and globs.

    A link to a folder that holds it is of the type _CIRCLE, and is not followed.
    """

    def ls(self, path: str, detail: bool = False, **options: Any) -> list[Any]:
        found = [_followed(info) if info["islink"] else info for info in super().ls(path, detail=True, **options)]
        return found if detail else [info["name"] for info in found]


def _followed(info: dict[str, Any]) -> dict[str, Any]:
    path = Path(info["name"])
    if path.is_dir():
        above = {parent.resolve() for parent in path.parents}
        return info | {"type": _CIRCLE if path.resolve() in above else "directory"}
    return info | {"type": "file"} if path.is_file() else info


def is_store_error(error: Exception, path: str) -> bool:
    """Whether an error is of the store that a file lies in, or of the network, and says nothing about what is in the file."""
    if isinstance(error, OSError):
        own = error.errno is not None or local_path(path) is None  # a decoder's own OSError has no number
        return own and not isinstance(error, FileNotFoundError)
    return _may_pass(error) or _status(error) is not None


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, _LASTING):
        return False
    status = _status(error)
    if status is not None:
        return status >= 500 or status in _BUSY
    if isinstance(error, OSError) and error.errno is None:
        return True
    return any(kind.__name__ in _CONNECTION_ERRORS for kind in type(error).__mro__)


def _status(error: Any) -> int | None:
    """The HTTP status that an error of aiohttp, gcsfs, botocore or requests carries, if any."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    own = getattr(error, "status" if hasattr(error, "status") else "code", None)  # aiohttp's `code` warns
    found = (own, getattr(response, "status_code", None), metadata.get("HTTPStatusCode"))
    numbers = [int(str(status)) for status in found if str(status).isdecimal()]
    return next((number for number in numbers if 100 <= number < 600), None)


def content_hash(files: Sequence[InputFile], format: str, each: Callable[[], object] = lambda: None) -> str:
    """The SHA-256 of the files' bytes in their order, and of nothing else: not of their paths, and not of which columns are
    used. Of image and audio files the names of the two folders above count too: they are labels and splits. `each` is called now
    and then.
    """  # fmt: skip
    digest = hashlib.sha256()
    for file in files:
        if format in MEDIA:
            digest.update("\0".join(PurePosixPath(file.path).parts[-3:-1]).encode())
        with open_file(file.path) as handle:
            while block := handle.read(HASH_BYTES):
                digest.update(block)
                each()
    return digest.hexdigest()
