"""Folders of images or of sound: each file is a row, decoded for a model that declares pixels or a sample rate, or passed as
bytes to one that declares these.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import AUDIO, IMAGES, MEDIA, InputFile
from forebay.datasets.formats.files import open_file
from forebay.datasets.formats.source import Block, Chunk, Sample

PATH = "path"


class Images:
    """One image file. Its bytes are decoded when the model's signature is known, by reading.inputs."""

    locator = "row"
    column = MEDIA[IMAGES]

    def sample(self, file: InputFile) -> Sample:
        return Sample({self.column: pa.binary(), PATH: pa.string()}, file.size == 0)

    def layout(self, file: InputFile, columns: Sequence[str], row_bytes: int) -> list[Block]:
        del columns, row_bytes
        return [Block(0, 1, 1, file.size)]

    def read(self, file: InputFile, first: int, last: int, columns: Sequence[str]) -> Iterator[Chunk]:
        del first, last, columns
        with open_file(file.path) as handle:
            data = handle.read()
        bad: dict[int, Exception] = {} if data else {0: InvalidInput("the file is empty")}
        yield Chunk(
            {self.column: pa.array([data], pa.binary()), PATH: pa.array([file.path])}, np.zeros(1, np.int64), bad
        )


class Audio(Images):
    """One file of sound."""

    column = MEDIA[AUDIO]
