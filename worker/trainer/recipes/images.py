"""`image-classifier`: a convolutional network on images, from folders of files or from columns of pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.recipes import CLASSES
from forebay.datasets.columns import Values
from forebay.datasets.decoding import decode_image, for_each
from forebay.datasets.reading.table import Table
from forebay.worker.trainer.preprocessing import DROP, fit_scale
from forebay.worker.trainer.recipes.tabular import perceptron

IMAGE = "image"
_COLORS = (1, 3, 4)


class ImageClassifier:
    task: ClassVar[str] = CLASSES

    def __init__(self, params: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
        self._params = params
        self.state = dict(state or {})
        self._files = False  # whether `read` has decoded files

    def read(self, columns: Mapping[str, Values]) -> tuple[dict[str, Values], dict[int, str]]:
        """Image files decoded and brought to the size that is trained on, and why others cannot be read."""
        read, bad = dict(columns), dict[int, str]()
        for name, values in columns.items():
            if isinstance(values, list) and not self._params["shape"]:
                self._files = True
                read[name] = self._all_small(values, bad)
        return read, bad

    def fit(self, rows: Table, missing: str) -> None:
        if missing != DROP:
            raise InvalidInput(f"missing: {missing!r} does not work for images; use drop")
        values = only_column(rows, "image-classifier")
        self.state = {"files": self._files or isinstance(values, list), "mean": [0.0], "deviation": [1.0]}
        if self._files or isinstance(values, list):
            self.state |= {"shape": [3, self._params["size"], self._params["size"]], "last": False}
        else:
            shape = _shape(values.shape[1:], self._params["shape"])
            self.state |= {"shape": list(shape), "last": len(shape) == 3 and _is_last(shape)}
        if self._params["normalize"]:
            channels = self._planes({IMAGE: values}).swapaxes(0, 1)
            scales = [fit_scale(channel.reshape(-1, 1)) for channel in channels]
            self.state |= {"mean": [m[0] for m, _ in scales], "deviation": [d[0] for _, d in scales]}

    def encode(self, columns: Mapping[str, Values]) -> tuple[NDArray[Any], ...]:
        """`(rows, channels, height, width)`."""
        planes = self._planes(columns)
        mean, deviation = (np.asarray(self.state[name], np.float32)[:, None, None] for name in ("mean", "deviation"))
        return (((planes - mean) / deviation).astype(np.float32),)

    def build(self, outputs: int) -> nn.Module:
        return Convolutions(
            self._channels_first(), self._params["channels"], self._params["hidden"], outputs, self._params["dropout"]
        )

    def attributed(self, numbers: NDArray[Any], columns: Mapping[str, Values], slopes: bool) -> dict[str, NDArray[Any]]:
        """Of numbers `(rows, channels, height, width)` those of the pixels as they were given; of a file, which has them no more,
        the sum over its channels.
        """  # fmt: skip
        del columns
        if slopes:
            numbers = numbers / np.asarray(self.state["deviation"], np.float32)[:, None, None]
        if self.state["files"]:
            return {IMAGE: numbers.sum(1)}
        return {
            IMAGE: (np.moveaxis(numbers, 1, -1) if self.state["last"] else numbers).reshape(-1, *self.state["shape"])
        }

    def inputs(self) -> dict[str, Any]:
        """`image`: a file's bytes when trained on files, else an array of the shape that was trained on."""
        if self.state["files"]:
            return {IMAGE: {"dtype": "bytes"}}
        return {IMAGE: {"dtype": "float32", "shape": self.state["shape"], "nan": False}}

    def _channels_first(self) -> tuple[int, int, int]:
        shape = tuple(self.state["shape"])
        if len(shape) == 2:
            return (1, *shape)
        return (shape[2], *shape[:2]) if self.state["last"] else (shape[0], shape[1], shape[2])

    def _planes(self, columns: Mapping[str, Values]) -> NDArray[np.float32]:
        values = columns[IMAGE] if IMAGE in columns else next(iter(columns.values()))
        if self.state["files"]:
            small = values if isinstance(values, np.ndarray) else self._all_small(values)
            return small.astype(np.float32) / np.float32(255)
        pixels = np.asarray(values, np.float32).reshape(len(values), *self.state["shape"])
        if self.state["last"]:
            pixels = np.moveaxis(pixels, -1, 1)
        return pixels.reshape(len(values), *self._channels_first())

    def _all_small(self, files: Sequence[Any], bad: dict[int, str] | None = None) -> NDArray[np.uint8]:
        """`(rows, 3, size, size)`; what cannot be read goes to `bad`, if there is one. A missing value is left black."""
        size = self._params["size"]
        made = np.zeros((len(files), 3, size, size), np.uint8)

        def fill(i: int) -> InvalidInput | None:
            try:
                if files[i] is not None or bad is None:
                    made[i] = _small(files[i], size, self._params["orientation"])
            except InvalidInput as error:
                return error
            return None

        for i, error in enumerate(for_each(fill, range(len(files)))):
            if error is not None:
                if bad is None:
                    raise error
                bad[i] = str(error)
        return made


class Convolutions(nn.Module):
    """`(rows, channels, height, width)` to `(rows, outputs)`. Group normalization: a row must not depend on its batch."""

    def __init__(
        self, shape: Sequence[int], channels: Sequence[int], hidden: Sequence[int], outputs: int, dropout: float
    ) -> None:
        super().__init__()
        before, height, width = shape
        layers: list[nn.Module] = []
        for after in channels:
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.GroupNorm(math.gcd(after, 8), after),
                nn.ReLU(),
            ]
            before = after
            if min(height, width) >= 4:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
        small = (min(height, 8), min(width, 8))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(small), nn.Flatten())
        self.head = perceptron(before * small[0] * small[1], hidden, outputs, dropout)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def only_column(rows: Table, recipe: str) -> Values:
    if len(rows.columns) != 1:
        raise InvalidInput(f"{recipe} learns from one column; name it, there are {', '.join(map(shown, rows.columns))}")
    return next(iter(rows.columns.values()))


def _shape(given: tuple[int, ...], wanted: Sequence[int]) -> tuple[int, ...]:
    size = math.prod(given)
    if wanted:
        if math.prod(wanted) != size or len(wanted) not in (2, 3):
            raise InvalidInput(
                f"shape: an image has {size} numbers, {list(wanted)} holds {math.prod(wanted)}; give [h,w] or so"
            )
        if len(given) > 1 and tuple(wanted) != given:
            raise InvalidInput(
                f"shape: the images have the shape {list(given)}, not {list(wanted)}; leave shape out, it is for flat lists"
            )
        given = tuple(wanted)
    if len(given) == 1:
        side = math.isqrt(size)
        if side * side != size:
            raise InvalidInput(
                f"an image is a flat list of {size} numbers, which is not a square; give its shape, such as 28,28,3"
            )
        given = (side, side)
    if len(given) not in (2, 3) or (len(given) == 3 and given[0] not in _COLORS and given[2] not in _COLORS):
        raise InvalidInput(
            f"images have the shape {list(given)}; expected [h, w], [h, w, c] or [c, h, w] with c 1, 3 or 4"
        )
    return given


def _is_last(shape: Sequence[int]) -> bool:
    return shape[2] in _COLORS


def _small(data: Any, size: int, oriented: bool) -> NDArray[np.uint8]:
    """An image file as `(3, size, size)`."""
    if isinstance(data, Mapping):  # as Hugging Face's data sets keep images
        data = data.get("bytes")
    if not isinstance(data, bytes):
        raise InvalidInput(f"expected the bytes of an image file, got {shown(data)}")
    pixels = decode_image(data, oriented=oriented)
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def a_pixel() -> bytes:
    """An image file that can be decoded: black, 1 × 1, as GIF."""
    head = b"GIF89a\1\0\1\0\x80\1\0\0\0\0\xff\xff\xff"
    return head + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
