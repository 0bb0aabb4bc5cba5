"""How many rows of a model version fit on a kind of device at once, as the workers have found out."""

from __future__ import annotations

from dataclasses import dataclass

from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement

READ = Statement("""
SELECT v.max_batch_size, c.rows, c.tried_at FROM model_versions v
LEFT JOIN batch_ceilings c ON c.name = v.name AND c.version = v.version AND c.device = :device
WHERE v.name = :name AND v.version = :version""")
LOWER = Statement("""
INSERT INTO batch_ceilings (name, version, device, rows, tried_at)
SELECT :name, :version, :device, :rows, :now FROM model_versions WHERE name = :name AND version = :version
ON CONFLICT (name, version, device) DO UPDATE SET rows = :rows, tried_at = :now WHERE batch_ceilings.rows > :rows""")
TRY = Statement("""
UPDATE batch_ceilings SET tried_at = :now
WHERE name = :name AND version = :version AND device = :device AND tried_at < :before""")
RAISE = Statement("""
UPDATE batch_ceilings SET rows = :rows, tried_at = :now
WHERE name = :name AND version = :version AND device = :device AND rows < :rows""")


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The version's `max_batch_size` now, which a benchmark may have changed. At most `rows` rows fit at once, None when nothing
    has run out of memory yet; `age_s` seconds since more were last tried.
    """  # fmt: skip

    max_batch_size: int
    rows: int | None = None
    age_s: float = 0.0


class CeilingStore:
    """The ceilings of one kind of device, such as `cpu` or `NVIDIA H200`, shared by every worker. Thread-safe."""

    def __init__(self, ledger: Ledger, device: str) -> None:
        self._ledger = ledger
        self.device = device

    def apart(self, work: str) -> CeilingStore:
        """The ceilings of another work on the same kind of device."""
        return CeilingStore(self._ledger, f"{self.device[: 98 - len(work)]}, {work}")

    def get(self, name: str, version: int) -> Ceiling | None:
        """What is known; None when the version has been deleted."""
        row = self._ledger.row(READ, name=name, version=version, device=self.device)
        if row is None or row.rows is None:
            return None if row is None else Ceiling(row.max_batch_size)
        return Ceiling(row.max_batch_size, row.rows, max(0.0, self._ledger.now() - row.tried_at))

    def lower(self, name: str, version: int, rows: int) -> None:
        """More than `rows` did not fit; a lower ceiling that is known stays."""
        self._write(LOWER, name, version, rows=max(1, rows))

    def try_more(self, name: str, version: int, after_s: float) -> bool:
        """Whether this worker is the one to try more rows, nobody having done so for `after_s` seconds."""
        return self._write(TRY, name, version, before=self._ledger.now() - after_s) > 0

    def raise_to(self, name: str, version: int, rows: int) -> None:
        """So many rows did fit."""
        self._write(RAISE, name, version, rows=rows)

    def _write(self, statement: Statement, name: str, version: int, **values: float) -> int:
        with self._ledger.write() as connection:
            key = {"name": name, "version": version, "device": self.device}
            return statement.execute(connection, **key, **values, now=self._ledger.now()).rowcount
