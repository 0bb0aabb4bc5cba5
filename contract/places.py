"""Where data lies: folders that only their owner may enter, and stores that every worker has to see."""

from __future__ import annotations

from pathlib import Path

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown

ARTIFACTS = "artifacts"  # below the home: copies of what the blob store has
OTHERS = 0o077  # what the group and everybody may do with a file or folder
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


def refuse_unshared(url: str) -> None:
    """InvalidInput for a URL, or a chain of them, that only this process can read or write."""
    if "://" in url and UNSHARED in (part.partition("://")[0] for part in url.split("::")):
        raise InvalidInput(
            f"{shown(url)} is in this process's memory, where no worker sees it; name a folder or a store that all see"
        )
