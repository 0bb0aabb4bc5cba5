"""Memory ceilings without a ledger."""

from forebay.storage.models.ceilings import Ceiling


class NoCeilings:
    """Ceilings of a ledger that knows none, and keeps what it is told."""

    def __init__(self) -> None:
        self.lowered: list[int] = []

    def get(self, name: str, version: int) -> Ceiling | None:
        return None

    def lower(self, name: str, version: int, rows: int) -> None:
        self.lowered.append(rows)
