"""What a child tells its parent of one pool task; billiard pickles it between the two."""

from __future__ import annotations

from msgspec import Struct

from forebay.contract.drift.sketch import Served
from forebay.contract.metrics.statistics import Statistics


class TaskReport(Struct, frozen=True):
    """How the task went. `summary` is for Flower; `released` ids were given back unrun; `counts` are those of process `pid`,
    and `served` what it has sketched.
    """  # fmt: skip

    summary: str
    seconds: float
    failed: bool
    released: tuple[str, ...]
    pid: int
    counts: Statistics
    served: tuple[Served, ...] = ()
