"""Where data lies: folders and tokens that are their owner's only, and stores that every worker has to see."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown

ARTIFACTS = "artifacts"  # below the home: copies of what the blob store has
OTHERS = 0o077  # what the group and everybody may do with a file or folder
DASHBOARD_TOKEN = "dashboard-token"  # noqa: S105 - the file in the home that lets into a dashboard without a login
UNSHARED = "memory"  # fsspec's store in the process's own memory


def make_private_folder(path: Path) -> Path:
    """Make the folder and those above it that are missing, for their owner only; one that is there stays as it is."""
    if not path.is_dir():
        make_private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
    return path


def open_to_others(path: Path) -> bool:
    """Whether other users may list, enter or change this folder."""
    return bool(path.stat().st_mode & OTHERS)


def read_token(path: Path) -> str:
    """The token in this file; "" where there is none, or where others may have read or written it."""
    try:
        with path.open(encoding="ascii") as file:
            status, token = os.fstat(file.fileno()), file.read(1000)
    except (OSError, ValueError):
        return ""
    private = status.st_uid == os.getuid() and not status.st_mode & OTHERS
    return token if private and re.fullmatch(r"[\w-]{40,100}", token) else ""


def keep_token(path: Path) -> str:
    """The token in this file, which is made, for its owner only, where `read_token` finds none."""
    while not (token := read_token(path)):
        path.unlink(missing_ok=True)
        made = make_private_folder(path.parent) / f"{path.name}.{secrets.token_hex(8)}"
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32))
        with suppress(FileExistsError):  # of another process that makes it at this moment
            path.hardlink_to(made)
        made.unlink()
    return token


def refuse_unshared(url: str) -> None:
    """InvalidInput for a URL, or a chain of them, that only this process can read or write."""
    if "://" in url and UNSHARED in (part.partition("://")[0] for part in url.split("::")):
        raise InvalidInput(
            f"{shown(url)} is in this process's memory, where no worker sees it; name a folder or a store that all see"
        )
