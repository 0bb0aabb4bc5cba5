"""What a page shows of an explain job: parts by how much they count, and heat maps whose PNG a reader of images understands."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from forebay.contract.wire import codec
from forebay.contract.wire.payload import join_rows, pack_input
from forebay.dashboard.reads.explanation import preview_explanation

ABOUT = {"method": "integrated-gradients", "output": "scores", "target": "cat", "score": 0.75}
SUMS = {"baseline_score": 0.25, "delta": 0.1, "converged": False, "warning": "take more steps"}


def pixels(address: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_columns_and_words_come_by_what_they_add() -> None:
    row = {"age": 3.0, "text": "not bad", "pair": np.zeros(2)}
    told = {
        "age": np.float32(-2),
        "text": [["not", 0.5], ["bad", 1.0]],
        "pair": np.array([0.0, 4.0]),
        "explanation": ABOUT | SUMS,
    }
    [shown] = preview_explanation(pack_input([row], False), codec.encode(told))
    assert [(part.name, part.share) for part in shown.parts] == [
        ("pair[1]", 1), ("age", -0.5), ("bad", 0.25), ("not", 0.125), ("pair[0]", 0),
    ]  # fmt: skip
    assert "scores of cat is 0.75, explained by integrated-gradients; 0.25 at the baseline" in shown.about
    assert shown.warning == "take more steps"


def test_an_image_has_its_heat_map_beside_it_red_where_a_part_adds_and_blue_where_it_takes() -> None:
    image, parts = np.zeros((3, 10, 12), np.float32), np.zeros((3, 10, 12), np.float32)
    image[:, 2, 3], parts[:, 0, 0], parts[0, 9, 11] = 1, 2, -3
    rows = [{"image": image}] * 3
    made = join_rows([{"image": parts, "explanation": ABOUT}] * 3)
    shown = preview_explanation(pack_input(rows, True), codec.encode(made))
    assert len(shown) == 3
    [heat] = shown[2].maps
    assert heat.most == 6
    assert pixels(heat.image)[2, 3].tolist() == [255, 255, 255]
    over = pixels(heat.heat)
    assert over.shape == (10, 12, 4)
    assert (over[0, 0].tolist(), over[9, 11].tolist()) == ([214, 39, 40, 220], [31, 119, 180, 110])
    assert over[..., 3].astype(int).sum() == 330


def test_a_large_image_is_shown_small_and_a_file_as_it_is() -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(file, "PNG")
    told = {"photo": np.ones((300, 200), np.float32), "explanation": ABOUT}
    [shown] = preview_explanation(pack_input([{"photo": file.getvalue()}], False), codec.encode(told))
    [heat] = shown.maps
    assert base64.b64decode(heat.image.removeprefix("data:image/png;base64,")) == file.getvalue()
    assert pixels(heat.heat).shape == (128, 128, 4)


def test_bytes_that_are_no_explanation_show_nothing() -> None:
    good = pack_input([{"x": 1.0}], False)
    for result in (b"", b"junk", codec.encode(3), codec.encode({"x": 1}), codec.encode({"explanation": {"score": 1}})):
        assert preview_explanation(good, result) == []
    script = {"photo": np.ones((2, 2), np.float32), "explanation": ABOUT}
    [shown] = preview_explanation(pack_input([{"photo": b"<svg onload=alert(1)>"}], False), codec.encode(script))
    assert shown.maps == []
