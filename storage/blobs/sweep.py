"""Removing blobs that nobody refers to any more: those of jobs that retention has deleted, of versions and runs that are gone.

Mark and sweep, a folder of the store at a time. What nobody refers to is noted in the ledger with the moment, by the ledger's
clock, and with its version; it goes when it has stayed so for the whole grace time, and nobody refers to it at that moment. A
blob lies in the store before the row that refers to it: the grace time has to be longer than any submit or finish takes.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import structlog

from forebay.storage.blobs.store import FOLDERS, BlobStore
from forebay.storage.blobs.stored import StoredFile
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement

log = structlog.get_logger()

USED = Statement("""
SELECT input_ref AS ref FROM jobs WHERE input_ref IS NOT NULL AND input_ref = ANY(:refs)
UNION SELECT result_ref FROM jobs WHERE result_ref IS NOT NULL AND result_ref = ANY(:refs)
UNION SELECT blob FROM checkpoints WHERE blob = ANY(:refs)
UNION SELECT blob FROM files WHERE blob = ANY(:refs)
UNION SELECT input_blob FROM request_batches
WHERE input_blob = ANY(:refs) AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
UNION SELECT artifact FROM trials WHERE artifact IS NOT NULL AND artifact = ANY(:refs)
UNION SELECT artifact FROM model_versions WHERE artifact = ANY(:refs)""")
MARKS = Statement("SELECT path, version, since FROM unused_blobs WHERE folder = :folder")
MARK = Statement("""
INSERT INTO unused_blobs (path, folder, version, since) VALUES (:path, :folder, :version, :now)
ON CONFLICT (folder, path) DO UPDATE SET version = :version, since = :now""")
UNMARK = Statement("DELETE FROM unused_blobs WHERE folder = :folder AND path = ANY(:paths)")
# The ledger's own name is a row of the same table: of no folder's.
NAME = Statement("SELECT version FROM unused_blobs WHERE folder = 'ledger'")
SET_NAME = Statement("""
INSERT INTO unused_blobs (folder, path, version, since) VALUES ('ledger', 'ledger', :name, :now) ON CONFLICT DO NOTHING""")
REMEDY = "give each ledger a blob store of its own; if one is gone for good, delete its name from .ledgers in the store"
AT_ONCE = 500  # files that are removed, or marked, in one go: whoever stores one of them again waits meanwhile


@dataclass(frozen=True, slots=True)
class Freed:
    """What a sweep has removed."""

    blobs: int = 0
    blob_bytes: int = 0


class BlobSweep:
    """Sweeps the blobs of one ledger. Several sweeps at once do no harm."""

    def __init__(self, ledger: Ledger, blobs: BlobStore, grace_s: float) -> None:
        self._ledger, self._blobs, self._grace_s = ledger, blobs, grace_s
        self._folders: Iterator[str] = cycle(FOLDERS)

    def sweep(self, seconds: float) -> Freed:
        """Go on where the last call ended, for about so long or once around; what was removed.

        Nothing where other ledgers have blobs in the same store: this one does not know who refers to them.
        """
        until, freed = time.monotonic() + seconds, Freed()
        others = self._blobs.register(self._name()) - {self._name()}
        if others:
            log.warning("blobs_shared", blobs=self._blobs.url, ledgers=sorted(others), remedy=REMEDY)
            return freed
        for _ in FOLDERS:
            for file in self._sweep_folder(next(self._folders), until):
                freed = Freed(freed.blobs + 1, freed.blob_bytes + file.bytes)
            if time.monotonic() > until:
                break
        return freed

    def _name(self) -> str:
        """What this ledger is called in its blob store; made up by the first who asks."""
        if (name := self._ledger.scalar(NAME)) is None:
            with self._ledger.write() as connection:
                SET_NAME.execute(connection, name=secrets.token_hex(8), now=self._ledger.now())
            name = self._ledger.scalar(NAME)
        return str(name)

    def used(self, refs: Sequence[str]) -> set[str]:
        """Those of these blobs that a job, a checkpoint, a file or a version refers to."""
        return {row.ref for row in self._ledger.rows(USED, refs=refs)} if refs else set()

    def _sweep_folder(self, folder: str, until: float) -> Iterator[StoredFile]:
        now = self._ledger.now()
        marks = {row.path: row for row in self._ledger.rows(MARKS, folder=folder)}
        files = self._blobs.stored(folder)
        used = self.used([file.ref for file in files])
        unused = [file for file in files if file.ref not in used]
        known = [file for file in unused if file.path in marks and marks[file.path].version == file.version]
        fresh = set(unused).difference(known)
        self._unmark(folder, list(marks.keys() - {file.path for file in unused}))
        for some in _chunks(sorted(fresh, key=lambda file: file.path)):
            rows = [{"path": f.path, "folder": folder, "version": f.version, "now": now} for f in some]
            with self._ledger.write(durable=False) as connection:
                MARK.execute_many(connection, rows)
        for some in _chunks([file for file in known if marks[file.path].since <= now - self._grace_s]):
            gone = self._blobs.remove_unused(some, self.used)
            self._unmark(folder, [file.path for file in gone])
            yield from gone
            if time.monotonic() > until:
                return

    def _unmark(self, folder: str, paths: Sequence[str]) -> None:
        if paths:
            with self._ledger.write(durable=False) as connection:
                UNMARK.execute(connection, folder=folder, paths=paths)


def _chunks(files: Sequence[StoredFile]) -> Iterator[Sequence[StoredFile]]:
    return (files[i : i + AT_ONCE] for i in range(0, len(files), AT_ONCE))
