"""Folders of images: each file is a row, decoded by Pillow to pixels, or given as bytes to a model that wants those."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import InputFile
from forebay.datasets.formats.files import open_file
from forebay.datasets.formats.source import Chunk, Sample
from forebay.datasets.planning.shards import Block

IMAGE, PATH = "image", "path"


class Images:
    """One image. What becomes of its bytes is storage.datasets.inputs' business, which knows the model's signature."""

    locator = "row"

    def sample(self, file: InputFile) -> Sample:
        """Every image has the same two columns."""
        return Sample({IMAGE: pa.binary(), PATH: pa.string()}, file.size == 0)

    def layout(self, file: InputFile, columns: Sequence[str], row_bytes: int) -> list[Block]:
        """One row."""
        del columns, row_bytes
        return [Block(0, 1, 1, file.size)]

    def read(self, file: InputFile, first: int, last: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """The file's bytes and its path."""
        del first, last, columns
        with open_file(file.path) as handle:
            data = handle.read()
        bad: dict[int, Exception] = {} if data else {0: InvalidInput("the file is empty")}
        yield Chunk({IMAGE: pa.array([data], pa.binary()), PATH: pa.array([file.path])}, np.zeros(1, np.int64), bad)
