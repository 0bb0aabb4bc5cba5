"""Jobs that make a version's reference for drift of a data set, as both ends see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from forebay.contract.requests.batch import BatchRequest, InputFile
from forebay.contract.requests.request import Request


class ReferenceRequest(Request, frozen=True):
    """The rows that a version's inputs and outputs are to be held against; the fields are those of an EvaluateRequest."""

    ESTIMATES: ClassVar = {"row_bytes": 0}

    files: tuple[InputFile, ...]
    format: str
    columns: Mapping[str, tuple[str, ...]]
    row_bytes: int = 0
    dataset: str = ""

    @property
    def reading(self) -> BatchRequest:
        """What a batch that reads the same rows would be asked."""
        return BatchRequest(self.files, "", self.format, self.columns, row_bytes=self.row_bytes)
