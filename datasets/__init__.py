"""Data sets: what batch jobs read and write, outside of the ledger. Formats, planning, parts; no SQL, no model, no torch.

Everything below needs pyarrow, the extra `batch`, and is imported only by who runs or submits a batch.
"""

from __future__ import annotations

from importlib.util import find_spec

from forebay.contract.errors import MissingExtra


def require_pyarrow() -> None:
    """MissingExtra, saying how to get it, when pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise MissingExtra("data sets need pyarrow", "batch")
