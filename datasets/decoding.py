"""Image and audio files as the arrays that models take: one place, so that a model is served what it was trained on."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput, MissingExtra
from forebay.contract.numbers import MAX_RATE, MIN_RATE
from forebay.contract.signature import Field, Row, Signature

T = TypeVar("T")
R = TypeVar("R")

CORES = len(os.sched_getaffinity(0))
SUFFIXES = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus"),
}
OPENED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 89_478_485  # Pillow's own limit, which it only warns of
MAX_SAMPLES = 1 << 26  # of sound as a model takes it: 70 minutes of 16 kHz, 256 MiB
_SOUND = ("WAV", "WAVEX", "RF64", "FLAC", "MP3", "OGG")
_COUNTED = ("WAV", "WAVEX", "RF64", "FLAC")  # those that say how many samples they hold, and not about how many
_TAGS, _PADDING = 1 << 16, 2304  # where an MP3 file that knows its length says so, but for two frames
_BLOCK = 1 << 16  # samples of each channel that are decoded at once
_UNKNOWN_SIZE = 0x7FFFF000  # what is written to a pipe announces this much or more
_ORIENTATION, _BITS, _PHOTOMETRIC = 0x0112, 258, 262  # tags
_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
_BACK = {6: 8, 8: 6}  # what undoes an orientation, where it is not the same again


def orientation_of(data: bytes) -> Any:
    """The EXIF data of an image file that says how it is to be turned, and that alone; None where it says nothing."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=OPENED) as image:
        tag = image.getexif().get(_ORIENTATION)
    if tag not in _TURNS:
        return None
    exif = Image.Exif()
    exif[_ORIENTATION] = tag
    return exif


def oriented_view(pixels: NDArray[np.uint8], exif: Any) -> NDArray[np.uint8]:
    """Pixels as they are stored, turned as `orientation_of` their file says: a view, through which they can be written."""
    tag = 1 if exif is None else exif[_ORIENTATION]
    if tag in (5, 7, 6, 8):
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if tag in (3, 4, 7, 8) else 1, :: -1 if tag in (2, 3, 6, 7) else 1]


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
    mode = "L" if gray else "RGB"
    return np.asarray(pixels if pixels.mode == mode else pixels.convert(mode))  # converting copies in any case


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


def decode_audio(data: bytes, rate: int, channels: int | None = None) -> NDArray[np.float32]:
    """A WAV, FLAC, MP3 or Ogg file as samples from -1 to 1, `rate` a second: of one channel, `(length,)`, the mean of two where
    there are two; or, with `channels`, which it then has to have, `(length, channels)`. InvalidInput for what cannot be one.

    Read and resampled in blocks: a file that holds more than MAX_SAMPLES is refused before memory is taken for it.
    """
    try:
        import soundfile
        import soxr
    except (ImportError, OSError) as error:  # OSError: without its library
        raise MissingExtra("reading sound needs soundfile and soxr", "audio") from error
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_audio(file, data, rate, channels)
            file.seekable = lambda: False  # else it seeks after each read, which MP3 answers with other samples
            mixed = channels is None and file.channels == 2
            given = file.channels if channels is not None else 1
            resample = soxr.ResampleStream(file.samplerate, rate, given, "float32")
            parts, length, read = list[NDArray[np.float32]](), 0, 0
            while len(block := file.read(_BLOCK, "float32", always_2d=True)):
                read += len(block)
                block = block.mean(axis=1, dtype=np.float32, keepdims=True) if mixed else block
                parts.append(resample.resample_chunk(block))
                length += parts[-1].size
                if length > MAX_SAMPLES:
                    raise _too_long(rate)
            exact = file.format in _COUNTED or b"Xing" in data[:_TAGS] or b"Info" in data[:_TAGS]
            if read < file.frames - _PADDING and exact:
                raise InvalidInput(
                    f"the audio file is cut off: it announces {file.frames:,} samples and holds {read:,}"
                )
            parts.append(resample.resample_chunk(np.zeros((0, given), np.float32), last=True))
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(f"soundfile cannot read the audio: {type(error).__name__}: {error}") from error
    samples = np.concatenate(parts)
    if not np.isfinite(samples).all():
        raise InvalidInput("the audio holds samples that are no numbers (NaN or infinity)")
    return samples if channels is not None else samples[:, 0]


def _check_audio(file: Any, data: bytes, rate: int, channels: int | None) -> None:
    if file.format not in _SOUND:
        raise InvalidInput(f"the audio is of format {file.format}; expected WAV, FLAC, MP3 or Ogg")
    if not MIN_RATE <= file.samplerate <= MAX_RATE:
        raise InvalidInput(f"the audio has {file.samplerate:,} samples a second; expected {MIN_RATE:,} to {MAX_RATE:,}")
    if file.channels != channels and not (channels is None and file.channels <= 2):
        wanted = "1, or 2 to be mixed" if channels is None else channels
        raise InvalidInput(f"the audio has {file.channels} channels; this model takes {wanted}")
    announced = int.from_bytes(data[4:8], "little") + 8 if data[:4] == b"RIFF" else 0
    if len(data) < announced < _UNKNOWN_SIZE:  # the library reads what is left without a word
        raise InvalidInput(f"the audio file is cut off: it announces {announced:,} bytes and has {len(data):,}")
    if not file.frames:
        raise InvalidInput("the audio holds no samples")
    if file.frames * rate * (channels or 1) > MAX_SAMPLES * file.samplerate:
        raise _too_long(rate, file.frames / file.samplerate)


def _too_long(rate: int, seconds: float | None = None) -> InvalidInput:
    lasts = "is longer" if seconds is None else f"lasts {seconds:,.0f} s"
    return InvalidInput(
        f"the audio {lasts}; at most {MAX_SAMPLES:,} samples are read, {MAX_SAMPLES / rate:,.0f} s of one channel"
    )


def decode(declared: Field, data: bytes, *, oriented: bool = True) -> NDArray[Any]:
    """An image or audio file as the input takes it, whatever its size or length; InvalidInput says what is wrong with it."""
    if declared.sample_rate is not None:
        return decode_audio(data, declared.sample_rate, declared.shape[1] if len(declared.shape) == 2 else None)
    gray = len(declared.shape) == 2 or declared.shape[2] == 1
    pixels = decode_image(data, gray=gray, oriented=oriented)
    return pixels[..., None] if gray and len(declared.shape) == 3 else pixels


def read_files(signature: Signature, row: Row, *, oriented: bool) -> Row:
    """The row with the arrays of the files in it, as the signature declares them; itself where there are none."""
    files = [field for field in signature.inputs or () if field.media and type(row[field.name]) is bytes]
    if not files:
        return row
    made = dict(row)
    for field in files:
        try:
            array = decode(field, row[field.name], oriented=oriented)
        except InvalidInput as error:
            raise InvalidInput(f"input {field.name!a}: {error}") from error
        made |= Signature((field,)).row({field.name: array})  # of the declared size or length
    return made
