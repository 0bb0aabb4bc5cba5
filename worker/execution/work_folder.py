"""The folder of one attempt of a job that makes files. It is removed when the attempt ends; what a killed process has left, when
the next one begins.
"""  # fmt: skip

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from forebay.contract.places import make_private_folder

LOCK = ".lock"


@contextmanager
def work_folder(root: Path, name: str) -> Iterator[Path]:
    """A new, empty folder `name` below `root`, for as long as the block runs."""
    make_private_folder(root)
    remove_abandoned(root)
    folder, lock = root / name, root / f"{name}{LOCK}"
    with FileLock(lock):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def remove_abandoned(root: Path) -> None:
    """Remove the folders of processes that are gone: nobody holds their locks."""
    for path in root.glob(f"*{LOCK}"):
        try:
            with FileLock(path, timeout=0):
                shutil.rmtree(path.with_name(path.name.removesuffix(LOCK)), ignore_errors=True)
                path.unlink(missing_ok=True)
        except (Timeout, OSError):
            continue
