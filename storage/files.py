"""Files that were uploaded over HTTP, and those that batches made of them. What is in them lies in the blob store.

A file is its owner's, the API key that uploaded it; another owner's, and one whose time is over, is not there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement

_COLUMNS = "id, owner, filename, purpose, bytes, blob, created_at, expires_at"
_THERE = "owner = :owner AND (expires_at IS NULL OR expires_at > :now)"
ADD = Statement(f"""
INSERT INTO files ({_COLUMNS}) VALUES (:id, :owner, :filename, :purpose, :bytes, :blob, :created_at, :expires_at)""")
GET = Statement(f"SELECT {_COLUMNS} FROM files WHERE id = :id AND {_THERE}")
DELETE = Statement(f"DELETE FROM files WHERE id = :id AND {_THERE}")
FIRST_EXPIRY = Statement("SELECT min(expires_at) FROM files WHERE expires_at IS NOT NULL")
DROP_EXPIRED = Statement("DELETE FROM files WHERE expires_at <= :now")
_LISTED = {
    ascending: Statement(f"""
SELECT {_COLUMNS} FROM files WHERE {_THERE} AND (:purpose = '' OR purpose = :purpose) AND (:after = '' OR id {sign} :after)
ORDER BY id {order} LIMIT :limit""")
    for ascending, sign, order in ((True, ">", "ASC"), (False, "<", "DESC"))
}


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file: its id, which sorts by when it was made, its owner and size, and the blob it lies in."""

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    blob: str
    created_at: float
    expires_at: float | None = None


class FileStore:
    """The files' rows in the ledger. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def add(self, file: FileRecord) -> None:
        """Note a file whose blob is stored."""
        with self._ledger.write() as connection:
            ADD.execute(connection, **asdict(file))

    def get(self, id: str, owner: str) -> FileRecord | None:
        """A file, None when there is none."""
        row = self._ledger.row(GET, id=id, owner=owner, now=self._ledger.now())
        return None if row is None else _file(row)

    def delete(self, id: str, owner: str) -> bool:
        """Delete a file; whether it was there. Its blob goes when nothing refers to it any more."""
        with self._ledger.write() as connection:
            return DELETE.execute(connection, id=id, owner=owner, now=self._ledger.now()).rowcount > 0

    def drop_expired(self) -> int:
        """Delete the files whose time is over; how many. One quick read when there are none."""
        first, now = self._ledger.scalar(FIRST_EXPIRY), self._ledger.now()
        if first is None or first > now:
            return 0
        with self._ledger.write() as connection:
            return DROP_EXPIRED.execute(connection, now=now).rowcount

    def list(
        self, owner: str, *, purpose: str = "", after: str = "", limit: int, ascending: bool = False
    ) -> list[FileRecord]:
        """Up to `limit` files, the newest first unless `ascending`; those behind the one that `after` names."""
        values = {"owner": owner, "purpose": purpose, "after": after, "limit": limit, "now": self._ledger.now()}
        return [_file(row) for row in self._ledger.rows(_LISTED[ascending], **values)]


def _file(row: Any) -> FileRecord:
    return FileRecord(
        row.id, row.owner, row.filename, row.purpose, int(row.bytes), row.blob, row.created_at, row.expires_at
    )
