"""Sound files as samples: at the rate and with the channels that are declared, or errors; alone, in batches, beside images."""

import base64
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr
from PIL import Image

from forebay.api.native.values import inputs_from_json
from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Field, Signature
from forebay.datasets import decoding
from forebay.datasets.decoding import decode_audio
from forebay.producer import inputs
from forebay.producer.cli.inputs import read_inputs
from forebay.worker.execution.model_cache import LoadedModel
from support.datasets import errors_of, rows_of
from support.parts import Rowwise, files_of, run_batch

RATE = 16_000
SOUND = {"dtype": "float32", "shape": [-1], "sample_rate": RATE}


def tone(seconds: float = 0.25, rate: int = 44_100, channels: int = 1) -> np.ndarray:
    """Sines, one for each channel, `(length, channels)`."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([0.4 * np.sin(2 * np.pi * 220 * (c + 1) * time) for c in range(channels)], 1).astype(np.float32)


def saved(samples: np.ndarray, rate: int = 44_100, format: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3", "OGG"])
def test_a_file_is_its_samples_at_the_rate_asked_for_two_channels_mixed(format, channels, monkeypatch):
    monkeypatch.setattr(decoding, "_BLOCK", 1000)
    data = saved(tone(channels=channels), format=format)
    expected = soxr.resample(soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0].mean(1), 44_100, RATE)
    made = decode_audio(data, RATE)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, atol=1e-6)
    np.testing.assert_array_equal(
        decode_audio(saved(tone(rate=RATE), RATE, subtype="FLOAT"), RATE), tone(rate=RATE)[:, 0]
    )


def test_channels_that_are_declared_stay_apart():
    samples = tone(rate=RATE, channels=3)
    np.testing.assert_array_equal(decode_audio(saved(samples, RATE, subtype="FLOAT"), RATE, 3), samples)


def _nan() -> bytes:
    samples = tone()
    samples[7] = np.nan
    return saved(samples, subtype="FLOAT")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no sound at all", "soundfile cannot read the audio"),
        (b"", "soundfile cannot read the audio"),
        (saved(tone(channels=6)), "6 channels; this model takes 1, or 2 to be mixed"),
        (saved(tone(rate=500), 500), "500 samples a second; expected 1,000 to 384,000"),
        (saved(tone(0.001, 400_000), 400_000), "400,000 samples a second"),
        (saved(tone(0)), "holds no samples"),
        (saved(tone(), format="AIFF"), "of format AIFF; expected WAV, FLAC, MP3 or Ogg"),
        (_nan(), "no numbers"),
        (saved(tone())[:-5000], "cut off: it announces 22,094 bytes"),
        (saved(tone(), format="FLAC")[:-5000], "cut off|cannot read"),
        (saved(tone(2), format="MP3")[:-5000], "cut off"),
    ],
)
def test_what_is_no_sound_for_the_model_is_refused_with_the_reason(data, message):
    with pytest.raises(InvalidInput, match=message):
        decode_audio(data, RATE)


def test_a_small_file_of_many_hours_is_refused_before_memory_is_taken_for_it():
    hours = saved(np.zeros((1 << 22, 1), np.int16), 1_000, "FLAC")  # 70 minutes
    assert len(hours) < 100_000
    unknown = bytearray(hours)
    unknown[21:26] = bytes([unknown[21] & 0xF0, 0, 0, 0, 0])  # FLAC's count of samples: not known
    for data, rate in ((hours, 384_000), (bytes(unknown), 384_000)):
        tracemalloc.start()
        with pytest.raises(InvalidInput, match=r"at most 67,108,864 samples are read, 175 s"):
            decode_audio(data, rate)
        assert tracemalloc.get_traced_memory()[1] < 2 * 4 * decoding.MAX_SAMPLES
        tracemalloc.stop()


@pytest.mark.parametrize(
    "spec",
    [
        {"dtype": "float64", "shape": [-1], "sample_rate": RATE},
        {"dtype": "float32", "shape": [], "sample_rate": RATE},
        {"dtype": "float32", "shape": [-1, -1], "sample_rate": RATE},
        {"dtype": "float32", "shape": [-1], "sample_rate": 10},
        {"dtype": "float32", "shape": [-1], "sample_rate": 16e3},
        {"dtype": "str", "sample_rate": RATE},
    ],
)
def test_sound_is_declared_as_float32_at_a_rate(spec):
    with pytest.raises(InvalidInput, match="sample_rate is from 1,000 to 384,000, for float32 of shape"):
        Field.parse("sound", spec)
    assert Field.parse("sound", SOUND).json() == SOUND


MIXED = Signature.parse(
    {
        "photo": {"dtype": "uint8", "shape": [-1, -1, 3]}, "sound": SOUND, "title": {"dtype": "str"},
        "price": {"dtype": "float32", "shape": []},
    },
    {"output": {"dtype": "float64", "shape": []}},
)  # fmt: skip
PHOTO = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def photo() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "PNG")
    return file.getvalue()


def told(row: Any) -> float:
    """A number in which each input has a part."""
    return float(row["photo"].sum() + len(row["sound"]) * 1e-3 + len(row["title"]) * 1e3 + row["price"] * 1e4)


EXPECTED = PHOTO.sum() + 0.25 * RATE * 1e-3 + 3e3 + 2e4


def loaded() -> LoadedModel:
    return LoadedModel(ModelVersion("mixed", 1, "fake", "", "none", 0, MIXED), Rowwise(told), 0, warm=True)


def sent(signature: Signature, value: Any) -> float:
    """What a worker makes of a value that a client gives."""
    [row] = loaded().preprocess([signature.row(inputs.sample(signature, value))])
    return told(row)


def test_inputs_that_mix_an_image_sound_text_and_a_number_go_in_as_files_or_arrays(tmp_path):
    (tmp_path / "cat.png").write_bytes(photo())
    (tmp_path / "cat.wav").write_bytes(saved(tone()))
    by_path = {"photo": tmp_path / "cat.png", "sound": tmp_path / "cat.wav", "title": "cat", "price": 2}
    in_json: Any = {
        "title": "cat", "price": 2,
        **{name: {"base64": base64.b64encode(data).decode()} for name, data in (("photo", photo()), ("sound", saved(tone())))},
    }  # fmt: skip
    named = {name: {"file": str(value)} if isinstance(value, Path) else value for name, value in by_path.items()}
    for value in (
        {"photo": photo(), "sound": saved(tone()), "title": "cat", "price": 2},
        {"photo": Image.fromarray(PHOTO), "sound": tone(rate=RATE)[:, 0], "title": "cat", "price": 2},
        by_path,
        inputs_from_json(MIXED, in_json, batched=False),
        read_inputs(MIXED, json.dumps(named), None, each=False, batched=False).values[0],
    ):
        assert sent(MIXED, value) == pytest.approx(EXPECTED)
    several = {name: [value, value] for name, value in in_json.items()}
    rows = loaded().preprocess(MIXED.rows(inputs_from_json(MIXED, several, batched=True)))
    assert [told(row) for row in rows] == pytest.approx([EXPECTED] * 2)


def test_cells_of_a_table_stay_as_they_are_beside_a_file():
    cell = {"dtype": "float64", "shape": [], "cell": True}
    signature = Signature.parse({"sound": SOUND, "price": cell, "kind": {"dtype": "str", "cell": True}})
    row = signature.row({"sound": saved(tone()), "price": None, "kind": 3.0})
    model = LoadedModel(ModelVersion("m", 1, "fake", "", "none", 0, signature), Rowwise(len), 0, warm=True)
    [made] = model.preprocess([row])
    assert (len(made["sound"]), np.isnan(made["price"]), made["kind"]) == (4000, True, row["kind"])


def test_a_file_that_cannot_be_read_is_named_by_its_input(tmp_path):
    value = {"photo": photo(), "sound": b"noise", "title": "cat", "price": 2}
    with pytest.raises(InvalidInput, match="input 'sound': soundfile cannot read"):
        sent(MIXED, value)
    with pytest.raises(InvalidInput, match=r"nothing\.wav' cannot be read: No such file"):
        sent(MIXED, value | {"sound": tmp_path / "nothing.wav"})
    fixed = Signature.parse({"sound": SOUND | {"shape": [RATE]}})
    model = LoadedModel(ModelVersion("m", 1, "fake", "", "none", 0, fixed), Rowwise(len), 0, warm=True)
    with pytest.raises(
        InvalidInput, match=r"expected float32 of shape \[16000\] at 16,000 Hz, got float32 of shape \[4000\]"
    ):
        model.preprocess([fixed.row(saved(tone()))])


def test_the_only_input_of_a_model_may_be_a_file_in_json():
    only = Signature.parse({"sound": SOUND})
    file = {"base64": base64.b64encode(saved(tone())).decode()}
    for value in (file, {"sound": file}):
        assert only.row(inputs_from_json(only, value, batched=False)) == {"sound": saved(tone())}
    with pytest.raises(InvalidInput, match=r"missing \['sound'\], unknown \['noise'\]"):
        only.row(inputs_from_json(only, {"noise": file}, batched=False))
    with pytest.raises(InvalidInput, match="'sound': 'x' is not base64"):
        inputs_from_json(only, {"base64": "x"}, batched=False)


def test_a_file_of_sound_is_given_to_a_model_by_the_command_line(tmp_path):
    (tmp_path / "cat.wav").write_bytes(saved(tone()))
    [data] = read_inputs(
        Signature.parse({"sound": SOUND}), None, tmp_path / "cat.wav", each=False, batched=False
    ).values
    assert len(decode_audio(data, RATE)) == 0.25 * RATE


def test_a_folder_of_sound_is_a_batch_whose_errors_name_their_files(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in (
        ("a.wav", saved(tone())),
        ("b.flac", saved(tone(), format="FLAC")),
        ("c.mp3", b"x"),
        ("d.ogg", b""),
    ):
        (folder / name).write_bytes(data)
    out = run_batch(
        tmp_path / "out", files_of(*sorted(folder.iterdir())), lambda row: len(row["sound"]), {"sound": ("audio",)},
        signature=Signature.parse({"sound": SOUND}), format="audio", keep=("path",),
    )  # fmt: skip
    assert [(Path(row["path"]).name, row["output"]) for row in rows_of(out)] == [("a.wav", 4000), ("b.flac", 4000)]
    assert [Path(error["file"]).name for error in errors_of(out)] == ["c.mp3", "d.ogg"]
    assert "c.mp3" in errors_of(out)[0]["message"]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_columns_of_images_sound_text_and_numbers_make_a_batch_with_an_error_for_each_bad_row(tmp_path, form):
    rows: list[dict[str, Any]] = [
        {"id": 0, "photo": photo(), "sound": saved(tone()), "title": "cat", "price": 2.0},
        {"id": 1, "photo": photo(), "sound": saved(tone(channels=5)), "title": "dog", "price": 1.0},
        {"id": 2, "photo": b"x", "sound": saved(tone()), "title": "cow", "price": 1.0},
        {"id": 3, "photo": photo(), "sound": None, "title": "cow", "price": 1.0},
    ]
    path = tmp_path / f"shop.{form}"
    if form == "parquet":
        sound = pa.array([row["sound"] and {"bytes": row["sound"], "path": "x.wav"} for row in rows])  # as Hugging Face
        pq.write_table(pa.Table.from_pylist(rows).set_column(2, "sound", sound), path)
    else:
        plain = [
            {k: {"base64": base64.b64encode(v).decode()} if isinstance(v, bytes) else v for k, v in row.items()}
            for row in rows
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in plain))
    out = run_batch(
        tmp_path / "out", files_of(path), told, {name: (name,) for name in ("photo", "sound", "title", "price")}, format=form,
        keep=("id",), signature=MIXED,
    )  # fmt: skip
    assert [(int(row["id"]), row["output"]) for row in rows_of(out)] == [(0, pytest.approx(EXPECTED))]
    messages = [error["message"] for error in errors_of(out)]
    assert len(messages) == 3
    assert "5 channels" in messages[0]
    assert "Pillow cannot read" in messages[1]
    assert "missing" in messages[2]
