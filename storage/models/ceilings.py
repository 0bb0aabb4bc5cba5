"""How many rows of a model version fit on a kind of device at once, as the workers have found out."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from forebay.storage.ledger.connection import Ledger

READ = text("SELECT rows, tried_at FROM batch_ceilings WHERE name = :name AND version = :version AND device = :device")
LOWER = text("""
INSERT INTO batch_ceilings (name, version, device, rows, tried_at)
SELECT :name, :version, :device, :rows, :now FROM model_versions WHERE name = :name AND version = :version
ON CONFLICT (name, version, device) DO UPDATE SET rows = :rows, tried_at = :now WHERE batch_ceilings.rows > :rows""")
TRY = text("""
UPDATE batch_ceilings SET tried_at = :now
WHERE name = :name AND version = :version AND device = :device AND tried_at < :before""")
RAISE = text("""
UPDATE batch_ceilings SET rows = :rows, tried_at = :now
WHERE name = :name AND version = :version AND device = :device AND rows < :rows""")


@dataclass(frozen=True, slots=True)
class Ceiling:
    """At most `rows` rows at once; `age_s` seconds since more were last tried."""

    rows: int
    age_s: float


class CeilingStore:
    """The ceilings of one kind of device, such as `cpu` or `NVIDIA H200`, shared by every worker. Thread-safe."""

    def __init__(self, ledger: Ledger, device: str) -> None:
        self._ledger = ledger
        self._device = device

    def get(self, name: str, version: int) -> Ceiling | None:
        """What is known, or None when nothing has run out of memory yet."""
        with self._ledger.read() as connection:
            row = connection.execute(READ, self._key(name, version)).fetchone()
        return None if row is None else Ceiling(row[0], max(0.0, self._ledger.now() - row[1]))

    def lower(self, name: str, version: int, rows: int) -> None:
        """More than `rows` did not fit; a lower ceiling that is known stays."""
        with self._ledger.write() as connection:
            connection.execute(LOWER, self._key(name, version) | {"rows": max(1, rows), "now": self._ledger.now()})

    def try_more(self, name: str, version: int, after_s: float) -> bool:
        """Whether this worker is the one to try more rows, nobody having done so for `after_s` seconds."""
        now = self._ledger.now()
        with self._ledger.write() as connection:
            values = self._key(name, version) | {"now": now, "before": now - after_s}
            return connection.execute(TRY, values).rowcount > 0

    def lift(self, name: str, version: int, rows: int) -> None:
        """So many rows did fit."""
        with self._ledger.write() as connection:
            connection.execute(RAISE, self._key(name, version) | {"rows": rows, "now": self._ledger.now()})

    def _key(self, name: str, version: int) -> dict[str, object]:
        return {"name": name, "version": version, "device": self._device}
