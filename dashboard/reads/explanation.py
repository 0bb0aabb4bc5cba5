"""An explain job as its page shows it: what was explained, the parts that count most, and heat maps over images.

The bytes are untrusted: they go through the codec, images are shown by the browser as data, and what is read is bounded.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import ForebayError, InvalidInput
from forebay.contract.requests.explain import EXPLANATION
from forebay.contract.wire import codec
from forebay.contract.wire.payload import unpack_input
from forebay.storage.blobs.store import BlobStore

MAX_ROWS = 4
MAX_PARTS = 20
MAX_BYTES = 4 << 20  # of a payload in the blob store
MAX_FILE = 1 << 20  # of an image file
SIDE = 128  # pixels of an array that is shown as an image, at most
LEAST_SIDE = 8  # of an array of two dimensions that is taken for an image
SMALL = 64  # numbers of an array that are listed
_FILES = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"RIFF", "webp"), (b"BM", "bmp"))


@dataclass(frozen=True, slots=True)
class HeatMap:
    """An image and what its parts add, both as addresses that hold their data; `most` is what the strongest part adds."""

    name: str
    image: str
    heat: str
    most: float


@dataclass(frozen=True, slots=True)
class PartShown:
    """What a part adds, and its share of what the strongest one does, from -1 to 1."""

    name: str
    value: float
    share: float


@dataclass(frozen=True, slots=True)
class ExplainedRow:
    about: str
    warning: str
    maps: list[HeatMap]
    parts: list[PartShown]
    more: int  # parts that are not shown


def preview_explanation(input: bytes, result: bytes) -> list[ExplainedRow]:
    """The first rows of an explain job; none where the bytes are something else."""
    try:
        packed, value = unpack_input(input), codec.decode(result)
        told = list(_rows(value, len(packed.rows))) if packed.batched else [value]
        return [_row(row, one) for row, one in zip(packed.rows, told, strict=False)][:MAX_ROWS]
    except (InvalidInput, KeyError, IndexError, TypeError, ValueError):
        return []


def payload_of(blobs: Callable[[], BlobStore], inline: bytes | None, ref: str | None) -> bytes | None:
    """A payload wherever it lies; None when it is too large to be shown, or cannot be read."""
    if inline is not None or ref is None:
        return inline
    data = b""
    try:
        for chunk in blobs().chunks(ref):
            data += chunk
            if len(data) > MAX_BYTES:
                return None
    except (ForebayError, OSError):
        return None
    return data


def _rows(value: Any, count: int) -> Iterator[dict[str, Any]]:
    """The rows of a result that were joined."""
    if isinstance(value, list):
        yield from value
        return
    about = value[EXPLANATION]
    for i in range(min(count, MAX_ROWS)):
        one = about[i] if isinstance(about, list) else {name: column[i] for name, column in about.items()}
        yield {name: column[i] for name, column in value.items() if name != EXPLANATION} | {EXPLANATION: one}


def _row(row: Any, told: Mapping[str, Any]) -> ExplainedRow:
    about, given = told[EXPLANATION], row if isinstance(row, Mapping) else {}
    what = f"{about['output']} of {about['target']}" if "target" in about else about["output"]
    text = f"{what} is {about['score']:.4g}, explained by {about['method']}"
    if "delta" in about:
        text += (
            f"; {about['baseline_score']:.4g} at the baseline; the parts miss the difference by {about['delta']:.2g}"
        )
    maps, parts = list[HeatMap](), list[tuple[str, float]]()
    for name, values in told.items():
        if name == EXPLANATION:
            continue
        heat = _heat_map(name, given.get(name), values)
        if heat is not None:
            maps.append(heat)
        elif isinstance(values, list):
            parts += [(str(word), float(number)) for word, number in values]
        elif np.size(values) <= SMALL:
            parts += [(f"{name}{list(i) if i else ''}", float(x)) for i, x in np.ndenumerate(values)]
    parts.sort(key=lambda part: -abs(part[1]))
    most = abs(parts[0][1]) or 1.0 if parts else 1.0
    shown = [PartShown(name[:80], value, value / most) for name, value in parts[:MAX_PARTS]]
    return ExplainedRow(text, about.get("warning") or "", maps, shown, max(0, len(parts) - MAX_PARTS))


def _heat_map(name: str, given: Any, values: Any) -> HeatMap | None:
    if not isinstance(values, np.ndarray) or values.ndim not in (2, 3):
        return None
    picture = _file(given) if isinstance(given, bytes) else _pixels(given)
    if picture is None:
        return None
    planes = values if values.ndim == 2 else values.sum(_channels(values) or 0)
    small = _shrunk(planes.astype(np.float64))
    most = float(np.abs(small).max())
    share = small / (most or 1.0)
    color = np.where(share[..., None] > 0, [214, 39, 40], [31, 119, 180])  # adds: red; takes away: blue
    heat = np.concatenate([color, 220 * np.abs(share)[..., None]], 2).astype(np.uint8)
    return HeatMap(name, picture, png(heat), most)


def _file(data: bytes) -> str | None:
    kind = next((kind for magic, kind in _FILES if data.startswith(magic)), None)
    if kind is None or len(data) > MAX_FILE:
        return None
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _pixels(array: Any) -> str | None:
    """An array as an image, from its least number to its greatest."""
    if not isinstance(array, np.ndarray) or not array.size or not np.isfinite(array).all():
        return None
    channels = _channels(array)
    if (array.ndim == 3 and channels is None) or (array.ndim == 2 and min(array.shape) < LEAST_SIDE):
        return None
    planes = array[..., None] if channels is None else np.moveaxis(array, channels, -1)
    planes = planes[..., : 3 if planes.shape[2] >= 3 else 1].astype(np.float64)
    small = np.stack([_shrunk(planes[..., i]) for i in range(planes.shape[2])], -1)
    low, high = small.min(), small.max()
    return png((255 * (small - low) / ((high - low) or 1.0)).astype(np.uint8))


def _channels(array: NDArray[Any]) -> int | None:
    """Which dimension of three is an image's channels."""
    if array.ndim != 3:
        return None
    return 0 if array.shape[0] in (1, 3, 4) else 2 if array.shape[2] in (1, 3, 4) else None


def _shrunk(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most SIDE pixels in each direction, each the mean of those that it stands for."""
    for axis in (0, 1):
        length = plane.shape[axis]
        if length > SIDE:
            starts = np.arange(SIDE) * length // SIDE
            counts = np.diff(np.append(starts, length))
            plane = np.add.reduceat(plane, starts, axis) / (counts[:, None] if axis == 0 else counts)
    return plane


def png(pixels: NDArray[np.uint8]) -> str:
    """Pixels `(height, width, 1, 3 or 4)` as the address of a PNG that it holds."""
    height, width, channels = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], 1)
    head = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
