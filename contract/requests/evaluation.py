"""Evaluation jobs as both ends see them: which rows a model version is to be tried on, and what they are held against.

Knows nothing of torch, Arrow or SQL. What came of it is storage.training_records.Evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from msgspec import Meta

from forebay.contract.requests.batch import MEDIA, BatchRequest, InputFile
from forebay.contract.requests.request import Request


class EvaluateRequest(Request, frozen=True):
    """What an evaluation is to do, as its payload holds it.

    `columns` names for each input of the model the columns that make it, `target` the column with what is true, `output` the
    model's output that is held against it (None: what a classifier gives, or the only one). `row_bytes` is about what a row
    takes up in a text file. `dataset` is what the user called it.
    """

    ESTIMATES: ClassVar = {"row_bytes": 0}

    files: tuple[InputFile, ...]
    format: str
    target: Annotated[str, Meta(description="the column with what is true")]
    columns: Mapping[str, tuple[str, ...]]
    output: Annotated[
        str | None, Meta(description="the output that is compared with the target; none: the only one")
    ] = None
    row_bytes: int = 0
    dataset: str = ""

    @property
    def reading(self) -> BatchRequest:
        """What a batch that reads the same rows would be asked: they are read in the same way."""
        target = "path" if self.format in MEDIA else self.target  # a file's folder tells its label
        keep = () if any(target in columns for columns in self.columns.values()) else (target,)
        return BatchRequest(self.files, "", self.format, self.columns, keep, row_bytes=self.row_bytes)
