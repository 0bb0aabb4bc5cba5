"""Which files a data set consists of, and opening them: paths, globs, folders and URLs, through fsspec."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from forebay.contract.errors import InvalidInput, MissingExtra
from forebay.contract.references import shown
from forebay.contract.requests.batch import InputFile
from forebay.datasets.formats.store_errors import answering

_MAGIC = frozenset("*?[")


def find_files(given: str | Path | Sequence[str | Path], suffixes: Sequence[str]) -> list[InputFile]:
    """The files that `given` names, each once: those of a path or URL, of a glob in sorted order, below a folder.

    Below a folder only files with one of `suffixes` count, and none whose path has a name that begins with `_` or `.`: so
    the output of one batch can be the input of the next. InvalidInput when there is none, or one cannot be found.
    """
    several = [given] if isinstance(given, str | Path) else list(given)
    found = {file.path: file for one in several for file in _find(str(one), tuple(suffixes))}
    if not found:
        raise InvalidInput("the input names no file")
    return list(found.values())


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a path or URL, and the path in it."""
    try:
        fs, path = fsspec.url_to_fs(url)
    except ImportError as error:
        raise MissingExtra(f"{shown(url)} needs another package: {error}") from error
    except ValueError as error:
        raise InvalidInput(f"{shown(url)} is no path or URL: {error}") from error
    return fs, path


_filesystem = cache(filesystem)


def absolute(url: str | Path) -> str:
    """A path or URL as any process of this machine may be told it: local paths in full, without `file://`."""
    text = str(Path(url).expanduser()) if isinstance(url, Path) or "://" not in url else url
    fs, path = _filesystem(text)
    return _named(fs, path)


@contextmanager
def open_file(path: str) -> Iterator[Any]:
    """A file for reading, seekable where its store can; InvalidInput when it is not there, StoreUnavailable when its store
    answers badly, now or while it is read.
    """  # fmt: skip
    fs, inner = _filesystem(path)
    if isinstance(fs, LocalFileSystem):  # as it is; fsspec's own reader holds the interpreter's lock
        with _found(path, partial(open, inner, "rb")) as file:
            yield file
    else:
        with answering(path), _found(path, partial(fs.open, inner, "rb")) as file:
            yield file


def _found(path: str, opened: Callable[[], Any]) -> Any:
    try:
        return opened()
    except FileNotFoundError as error:
        raise InvalidInput(f"{shown(path)}: there is no such file here; every worker must see the input") from error


def local_path(path: str) -> str | None:
    """The path of a local file, None for one elsewhere."""
    fs, inner = _filesystem(path)
    return inner if isinstance(fs, LocalFileSystem) else None


def _find(url: str, suffixes: tuple[str, ...]) -> list[InputFile]:
    fs, path = _filesystem(str(Path(url).expanduser()) if "://" not in url else url)
    try:
        with answering(url):
            return _listed(fs, path, url, suffixes)
    except FileNotFoundError as error:
        raise InvalidInput(f"{shown(url)}: there is no such file or folder") from error
    except OSError as error:
        raise InvalidInput(f"{shown(url)} cannot be read: {error}") from error


def _listed(fs: Any, path: str, url: str, suffixes: tuple[str, ...]) -> list[InputFile]:
    if _MAGIC & set(path) and not fs.exists(path):
        found = fs.glob(path, detail=True)
        if not found:
            raise InvalidInput(f"no file is like {shown(url)}")
        return [_file(fs, info) for _, info in sorted(found.items()) if info["type"] == "file"]
    if fs.isdir(path):
        return _below(fs, path, url, suffixes)
    return [_file(fs, fs.info(path))]


def _below(fs: Any, folder: str, url: str, suffixes: tuple[str, ...]) -> list[InputFile]:
    files = [
        _file(fs, info)
        for path, info in sorted(fs.find(folder, detail=True).items())
        if path.lower().endswith(suffixes) and not _is_hidden(path, folder)
    ]
    if not files:
        raise InvalidInput(f"the folder {shown(url)} holds no file that ends in {', '.join(suffixes)}")
    return files


def _is_hidden(path: str, folder: str) -> bool:
    inside = PurePosixPath(path[len(folder) :].lstrip("/"))
    return any(part.startswith(("_", ".")) for part in inside.parts)


def _file(fs: Any, info: dict[str, Any]) -> InputFile:
    return InputFile(_named(fs, info["name"]), int(info.get("size") or 0))


def _named(fs: Any, path: str) -> str:
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))
