"""What a child tells its parent of one pool task; billiard pickles it between the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct


class TaskReport(Struct, frozen=True):
    """How the task went. `summary` is for Flower; `released` ids were given back unrun; `counts` are Statistics as a dict."""

    summary: str
    seconds: float
    failed: bool
    released: tuple[str, ...]
    counts: Mapping[str, Any]
