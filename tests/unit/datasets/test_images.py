"""Image files as pixels: scaled, turned and converted in one way, for batches and for training; the others are errors."""

import io
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.training import TrainRequest
from forebay.contract.signature import Signature
from forebay.datasets import decoding
from forebay.datasets.decoding import decode_image
from forebay.worker.trainer.data import load_data
from forebay.worker.trainer.recipes.images import ImageClassifier, a_pixel
from support.datasets import errors_of, rows_of
from support.parts import files_of, run_batch

RAMP = np.array([[0, 128, 255], [64, 192, 32]], np.uint8)
CORNER = np.array([[9, 0, 0], [0, 0, 0]], np.uint8)  # (2, 3), its first pixel marked


def saved(image: Image.Image, format: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **more)
    return buffer.getvalue()


def array(values: Any, format: str = "TIFF", **more: Any) -> bytes:
    return saved(Image.fromarray(np.asarray(values)), format, **more)


DEEP = {
    "16 bits, PNG": array(RAMP.astype(np.uint16) * 257, "PNG"),
    "16 bits, TIFF": array(RAMP.astype(np.uint16) * 257),
    "16 bits, big-endian": saved(Image.frombytes("I;16B", (3, 2), (RAMP.astype(">u2") * 257).tobytes()), "TIFF"),
    "16 bits in 32": array(RAMP.astype(np.int32) * 257),
    "floats": array(RAMP.astype(np.float32) / 255),
    "8 bits": array(RAMP, "PNG"),
}


@pytest.mark.parametrize("case", DEEP)
def test_more_than_8_bits_are_scaled(case: str) -> None:
    np.testing.assert_array_equal(decode_image(DEEP[case], gray=True), RAMP)
    np.testing.assert_array_equal(decode_image(DEEP[case]), np.repeat(RAMP[..., None], 3, 2))


@pytest.mark.parametrize(
    "values", [np.float32([[-1, 0.5]]), np.float32([[0, 300]]), np.float32([[np.nan]]), np.int32([[70_000]])]
)
def test_pixels_of_an_unknown_scale_are_an_error(values: Any) -> None:
    with pytest.raises(InvalidInput, match=r"pixels go from .* to .*; expected 0 \(black\) to (1|65535) \(white\)"):
        decode_image(array(values))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize(("tag", "corner"), [(1, (0, 0)), (2, (0, 2)), (3, (1, 2)), (4, (1, 0)), (5, (0, 0)), (6, (0, 1)),
                                             (7, (2, 1)), (8, (2, 0))])  # fmt: skip
def test_an_image_is_turned_as_its_tag_says_unless_that_is_not_wanted(
    format: str, tag: int, corner: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    large = np.kron(CORNER * 28, np.ones((16, 16), np.uint8))  # so that JPEG keeps the corner
    data = saved(Image.fromarray(large), format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    turned, plain = decode_image(data, gray=True), decode_image(data, gray=True, oriented=False)
    assert turned.shape == ((48, 32) if tag > 4 else (32, 48))
    assert turned[16 * corner[0] + 8, 16 * corner[1] + 8] > 200
    assert (turned > 100).sum() == (plain > 100).sum()
    assert plain[8, 8] > 200


MODES = {
    "alpha": (Image.new("RGBA", (1, 1), (10, 20, 30, 0)), [10, 20, 30]),
    "gray and alpha": (Image.new("LA", (1, 1), (10, 0)), [10, 10, 10]),
    "one bit": (Image.new("1", (1, 1), 1), [255, 255, 255]),
}


@pytest.mark.parametrize("case", MODES)
def test_transparency_is_left_out(case: str) -> None:
    image, expected = MODES[case]
    assert decode_image(saved(image))[0, 0].tolist() == expected


def test_palettes_and_cmyk_become_colours() -> None:
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 7, 8, 9])
    assert decode_image(saved(palette, transparency=b"\xff\x00"))[0, 0].tolist() == [7, 8, 9]
    assert decode_image(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))[0, 0].tolist() == [255, 0, 0]


def test_only_the_named_formats_are_opened() -> None:
    for format in ("PPM", "ICO", "TGA", "EPS"):
        with pytest.raises(InvalidInput, match="cannot read the image"):
            decode_image(saved(Image.new("RGB", (16, 16)), format))
    assert decode_image(a_pixel()).tolist() == [[[0, 0, 0]]]


def broken() -> dict[str, bytes]:
    """Files that make a decoder raise errors of several kinds."""
    png = saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))
    at = png.index(b"IDAT") + 4
    return {
        "checksum.png": png[:at] + b"\xff" + png[at + 1 :],
        "chunk.png": png[: at - 4] + b"!!!!" + png[at:],
        "truncated.png": png[: len(png) // 2],
        "text.png": b"no image",
        "header.gif": a_pixel()[:15],
    }


def test_whatever_a_decoder_raises_is_that_rows_error_and_names_its_file(tmp_path: Path) -> None:
    for name, data in broken().items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "good.png").write_bytes(array(RAMP, "PNG"))
    files = files_of(*sorted(tmp_path.iterdir()))
    signature = Signature.parse({"image": {"dtype": "uint8", "shape": [-1, -1]}})
    out = run_batch(
        tmp_path / "out", files, lambda row: float(row["image"].sum()), {"image": ("image",)}, signature=signature,
        format="images", keep=("path",),
    )  # fmt: skip
    assert [row["output"] for row in rows_of(out)] == [float(RAMP.sum())]
    errors = errors_of(out)
    assert len(errors) == len(broken())
    assert all(Path(error["file"]).name in error["message"] for error in errors)


@pytest.mark.parametrize("form", ["binary", "dictionary", "struct"])
def test_a_column_of_encoded_images_gives_what_their_files_give(tmp_path: Path, form: str) -> None:
    files = [array(RAMP, "PNG"), array(RAMP[::-1], "PNG"), b"no image", None]
    values: pa.Array = pa.array(files, pa.binary())
    if form == "dictionary":
        values = values.dictionary_encode()
    if form == "struct":
        values = pa.array([data and {"bytes": data, "path": "x.png"} for data in files])
    pq.write_table(pa.table({"picture": values, "id": [0, 1, 2, 3]}), tmp_path / "images.parquet")
    out = run_batch(
        tmp_path / "out", files_of(tmp_path / "images.parquet"), lambda row: row["image"][0, 0].tolist(),
        {"image": ("picture",)}, keep=("id",), signature=Signature.parse({"image": {"dtype": "uint8", "shape": [-1, -1, 1]}}),
    )  # fmt: skip
    assert [(row["id"], row["output"]) for row in rows_of(out)] == [(0, "[0]"), (1, "[64]")]
    assert [error["row"] for error in errors_of(out)] == [2, 3]
    assert "Pillow cannot read the image" in errors_of(out)[0]["message"]
    assert "missing" in errors_of(out)[1]["message"]


def test_several_images_are_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "CORES", 3)
    together = Barrier(3, timeout=60)
    assert decoding.for_each(lambda n: (together.wait(), n)[1], range(6)) == [*range(6)]


def test_too_many_pixels_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 5)
    with pytest.raises(InvalidInput, match="3 × 2 pixels; at most 5 are read"):
        decode_image(array(RAMP, "PNG"))


def test_a_truncated_image_is_left_out_of_training_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            (folder / name / f"{i}.png").write_bytes(array(RAMP + np.uint8(i), "PNG"))
    (folder / "cat" / "0.png").write_bytes(broken()["truncated.png"])
    files = files_of(*sorted(folder.glob("*/*.png")))
    request = TrainRequest("image-classifier", files, "images", "label")
    data = load_data(request, ImageClassifier(PARAMS), normalize=True)
    assert data.summary.dropped == 1
    assert sum(data.summary.rows.values()) == 7
    for name in ("cat", "dog"):
        for i in range(4):
            (folder / name / f"{i}.png").write_bytes(broken()["truncated.png"])
    with pytest.raises(
        InvalidInput, match=r"none of the 8 rows can be used; row 0: '.*cat/0\.png': Pillow cannot read"
    ):
        load_data(request, ImageClassifier(PARAMS), normalize=True)


PARAMS = {"size": 4, "shape": (), "normalize": True, "orientation": True}


@pytest.mark.parametrize("case", DEEP)
def test_training_sees_the_same_pixels_as_a_batch(case: str) -> None:
    recipe = ImageClassifier(PARAMS)
    read, bad = recipe.read({"image": [DEEP[case], None, b"no image"]})
    small = Image.fromarray(decode_image(DEEP[case])).resize((4, 4), Image.Resampling.BILINEAR)
    values = read["image"]
    assert isinstance(values, np.ndarray)
    np.testing.assert_array_equal(values[0], np.asarray(small).transpose(2, 0, 1))
    assert list(bad) == [2]
