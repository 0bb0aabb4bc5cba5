"""The picture of `make demo` holds what a terminal would show, at its time."""

import xml.etree.ElementTree as ET
from pathlib import Path

from support.demo_picture import LONGEST_WAIT_S, draw, lines_over_time

SVG = "{http://www.w3.org/2000/svg}"
OUTPUT = [
    (0.0, "\x1b[1mstarting\x1b[0m\r\n"),
    (60.0, "\r\x1b[2Kbar \x1b[38;5;237m━━━━\x1b[0m 1/2"),
    (60.5, "\r\x1b[2Kbar \x1b[32m━━━━\x1b[0m 2/2\r\n"),
    (60.5, "see http://127.0.0.1:5555/?\x1b[94mtoken\x1b[0m=aB-9_z & more\r\n"),
]


def test_a_line_that_is_written_again_has_both_states_and_a_long_wait_is_cut() -> None:
    first, bar, _ = lines_over_time(OUTPUT)
    assert [at for at, _ in first] == [0.0]
    assert [round(at - LONGEST_WAIT_S, 3) for at, _ in bar] == [0.0, 0.5]
    assert ["".join(character for character, _ in cells) for _, cells in bar] == ["bar ━━━━ 1/2", "bar ━━━━ 2/2"]


def test_only_the_last_state_of_a_line_is_seen_without_animation_and_no_token_is_told() -> None:
    groups = ET.fromstring(draw("make demo", lines_over_time(OUTPUT))).findall(f"{SVG}g")  # noqa: S314 - our own
    seen = ["".join(text.text or "" for text in g.iter(f"{SVG}text")) for g in groups if g.get("opacity") != "0"]
    assert seen == ["$ make demo", "starting", "bar  2/2", "see http://127.0.0.1:5555/?token=… & more"]
    assert [g.get("opacity") for g in groups].count("0") == 1


def test_the_committed_picture_is_small_and_whole() -> None:
    picture = Path(__file__).resolve().parents[2] / "docs" / "demo.svg"
    assert picture.stat().st_size < 150_000
    assert "same as direct" in picture.read_text("utf-8")
    assert ET.parse(picture).getroot().tag == f"{SVG}svg"  # noqa: S314 - our own
