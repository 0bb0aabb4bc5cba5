"""What lies in a blob store, as a sweep sees it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A blob, or what a writer that died has left: its path below the store, and what changes when it is stored again."""

    path: str
    bytes: int
    version: str

    @property
    def ref(self) -> str:
        return f"sha256:{self.path.rpartition('/')[2]}"

    @classmethod
    def local(cls, folder: str, name: str, found: os.stat_result) -> Self:
        return cls(f"{folder}/{name}", found.st_size, f"{found.st_mtime_ns}")

    @classmethod
    def remote(cls, path: str, info: Mapping[str, Any]) -> Self:
        """An object, which changes when its store says that it was stored last."""
        times = ("LastModified", "updated", "last_modified", "mtime")
        when = next((info[key] for key in times if info.get(key)), "")
        return cls(path, int(info["size"] or 0), str(when))
