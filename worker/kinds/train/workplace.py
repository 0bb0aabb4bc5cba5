"""The folder in which one attempt of a training job is made. It goes when the attempt ends; what a killed process has left goes
when the next one begins.
"""  # fmt: skip

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOCK = ".lock"


@contextmanager
def workplace(root: Path, name: str) -> Iterator[Path]:
    """A new, empty folder `name` below `root`, for as long as the block runs."""
    root.mkdir(parents=True, exist_ok=True)
    remove_left(root)
    lock, folder = root / f"{name}{LOCK}", root / name
    with _hold(lock):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def remove_left(root: Path) -> None:
    """Remove the folders of processes that are gone: theirs is the lock that anybody can take."""
    for lock in root.glob(f"*{LOCK}"):
        try:
            file = lock.open("ab")
        except OSError:
            continue
        with file:
            if _locked(file):
                shutil.rmtree(lock.with_name(lock.name.removesuffix(LOCK)), ignore_errors=True)
                lock.unlink(missing_ok=True)


@contextmanager
def _hold(path: Path) -> Iterator[None]:
    while True:
        with path.open("ab") as file:
            # Who clears up may have taken the file for a dead process' between the two steps.
            if _locked(file) and path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                yield
                return


def _locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
