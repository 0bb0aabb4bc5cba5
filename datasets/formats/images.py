"""Folders of images: each file is a row, decoded by Pillow to pixels, or passed as bytes to a model that declares bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput, MissingExtra
from forebay.contract.requests.batch import InputFile
from forebay.datasets.formats.files import open_file
from forebay.datasets.formats.source import Block, Chunk, Sample

T = TypeVar("T")
R = TypeVar("R")

CORES = len(os.sched_getaffinity(0))
IMAGE, PATH = "image", "path"
OPENED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 89_478_485  # Pillow's own limit, which it only warns of
_ORIENTATION, _BITS, _PHOTOMETRIC = 0x0112, 258, 262  # tags
_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
_BACK = {6: 8, 8: 6}  # what undoes an orientation, where it is not the same again


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


def for_each(work: Callable[[T], R], images: Sequence[T]) -> list[R]:
    """`work` of each image, in as many threads as there are cores: Pillow decodes without the interpreter's lock."""
    if CORES == 1 or len(images) < 2:
        return [work(image) for image in images]
    with ThreadPoolExecutor(min(CORES, len(images)), "decode") as threads:
        return list(threads.map(work, images))


def decode_image(data: bytes, *, gray: bool = False, oriented: bool = True) -> NDArray[np.uint8]:
    """An image's pixels, `(height, width, 3)`, or `(height, width)` if gray; InvalidInput for what cannot be one.

    Whoever turns image files into pixels does it by this, so that a model is served what it was trained on: turned as an
    orientation tag says, unless that is not wanted; 16 bits, and floats from 0 to 1, scaled to 8 bits; of several frames the
    first; transparency left out, and palettes and CMYK converted, as Pillow does.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("reading images needs Pillow", "batch") from error
    try:
        with Image.open(io.BytesIO(data), formats=OPENED) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InvalidInput(
                    f"the image has {image.width} × {image.height} pixels; at most {MAX_PIXELS:,} are read"
                )
            tag = int(getattr(image, "tag_v2", {}).get(_ORIENTATION, 1))
            image.load()  # which turns a TIFF file, and takes its tag away
            pixels = _eight_bits(image)
            turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1)) if oriented else _TURNS.get(_BACK.get(tag, tag))
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(f"Pillow cannot read the image: {type(error).__name__}: {error}") from error
    if turn is not None:
        pixels = pixels.transpose(Image.Transpose[turn])
    if pixels.mode == "P":  # by way of RGBA, since Pillow warns of transparency in palettes
        pixels = pixels.convert("RGBA")
    return np.asarray(pixels.convert("L" if gray else "RGB"))


def _eight_bits(image: Any) -> Any:
    """The image in 8 bits a channel; itself where it has no more."""
    from PIL import Image

    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    white = 1.0 if image.mode == "F" else 2.0 ** min(16, max(tags.get(_BITS, (16,)))) - 1
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= white:
        raise InvalidInput(f"the image's pixels go from {low:g} to {high:g}; expected 0 (black) to {white:g} (white)")
    shades = np.rint(values.astype(np.float64) * (255 / white)).astype(np.uint8)
    return Image.fromarray(255 - shades if tags.get(_PHOTOMETRIC) == 0 else shades)
