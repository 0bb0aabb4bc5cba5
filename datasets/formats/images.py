"""Folders of images: each file is a row, decoded by Pillow to pixels, or passed as bytes to a model that declares bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from forebay.contract.errors import InvalidInput, MissingExtra
from forebay.contract.requests.batch import InputFile
from forebay.datasets.formats.files import open_file
from forebay.datasets.formats.source import Block, Chunk, Sample

IMAGE, PATH = "image", "path"


class Images:
    """One image file. Its bytes are decoded when the model's signature is known, by reading.inputs."""

    locator = "row"

    def sample(self, file: InputFile) -> Sample:
        return Sample({IMAGE: pa.binary(), PATH: pa.string()}, file.size == 0)

    def layout(self, file: InputFile, columns: Sequence[str], row_bytes: int) -> list[Block]:
        del columns, row_bytes
        return [Block(0, 1, 1, file.size)]

    def read(self, file: InputFile, first: int, last: int, columns: Sequence[str]) -> Iterator[Chunk]:
        del first, last, columns
        with open_file(file.path) as handle:
            data = handle.read()
        bad: dict[int, Exception] = {} if data else {0: InvalidInput("the file is empty")}
        yield Chunk({IMAGE: pa.array([data], pa.binary()), PATH: pa.array([file.path])}, np.zeros(1, np.int64), bad)


def decode_image(data: bytes, shape: tuple[int, ...]) -> Any:
    """An image's pixels as uint8, gray or RGB as the declared shape asks for; an InvalidInput for what is not an image."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtra("reading images needs Pillow: pip install 'forebay[batch]'") from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            gray = len(shape) == 2 or shape[2] == 1
            pixels = np.asarray(image.convert("L" if gray else "RGB"))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        return InvalidInput(f"Pillow cannot read the image: {error}")
    return pixels[..., None] if gray and len(shape) == 3 else pixels
