"""Previews of payloads: short whatever the bytes hold, and never an error."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.job import JobKind
from forebay.contract.requests.request import encode as json_bytes
from forebay.contract.requests.training import TrainRequest
from forebay.contract.wire.codec import encode
from forebay.contract.wire.payload import join_rows, pack_input
from forebay.dashboard.reads.preview import (
    MAX_LINES,
    MAX_SAID,
    MAX_TEXT,
    MAX_TURNS,
    preview_input,
    preview_prompts,
    preview_result,
    preview_texts,
)


def test_an_array_shows_dtype_shape_and_first_values() -> None:
    (line,) = preview_result(encode(np.arange(12, dtype=np.float32).reshape(3, 4)))
    assert (line.type, line.value) == ("float32 of shape [3, 4]", "0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, …")


def test_an_inputs_rows_and_fields_are_named() -> None:
    lines = preview_input(pack_input([{"x": np.int64(3), "text": "<b>"}] * 20, batched=True))
    assert [(line.name, line.type, line.value, line.depth) for line in lines[:3]] == [
        ("row 1 of 20", "dict of 2", "", 0), ("x", "int64", "3", 1), ("text", "text of 3 characters", "<b>", 1),
    ]  # fmt: skip
    assert lines[-1].value == "more values are not shown"
    assert preview_input(pack_input([1] * 20, batched=True))[-1].value == "12 more rows"


@pytest.mark.parametrize("data", [b"", b"\xff" * 9, encode("no input"), encode([True]), encode([1, [2]])])
def test_bytes_that_are_no_input_are_called_unreadable(data: bytes) -> None:
    assert [line.type for line in preview_input(data)] == ["unreadable"]


def test_the_input_of_a_batch_or_a_training_job_is_its_request() -> None:
    request = TrainRequest("classifier", (), "parquet", target="label", params={"epochs": 3})
    for kind in (JobKind.TRAIN, JobKind.BATCH, JobKind.EVALUATE):
        lines = {line.name: line.value for line in preview_input(json_bytes(request), kind)}
        assert (lines["recipe"], lines["target"], lines["epochs"]) == ("classifier", "label", "3")
    assert [line.type for line in preview_input(b"\x81\xa1x", JobKind.TRAIN)] == ["unreadable"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=100), inner, max_size=12),
    max_leaves=60,
)


@given(VALUES)
def test_any_value_gives_a_few_short_lines(value: Any) -> None:
    for lines in (preview_result(encode(value)), preview_input(pack_input([value] * 3, batched=True))):
        assert 1 <= len(lines) <= MAX_LINES + 1
        assert all(len(line.name) <= 62 and len(line.value) <= MAX_TEXT + 130 for line in lines)


@given(st.binary(max_size=300))
def test_any_bytes_give_lines_and_no_error(data: bytes) -> None:
    assert preview_result(data)
    assert preview_input(data)


TURNS = [{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
TEXT = {"text": "Because.", "finish_reason": "stop", "usage": {"prompt_tokens": 3}}


def test_a_conversation_is_shown_by_roles_and_its_texts_with_their_ends() -> None:
    said = preview_prompts(pack_input([{"request": {"messages": TURNS, "n": 2}}], batched=False))
    assert [(turn.who, turn.text) for turn in said] == [("system", "Be <brief>."), ("user", "Why?")]
    result = {"choices": [TEXT, {"text": "So.", "finish_reason": "length"}], "usage": {}}
    assert [(t.text, t.more) for t in preview_texts(encode(result))] == [
        ("Because.", "ended by stop"), ("So.", "ended by length"),
    ]  # fmt: skip
    assert [turn.text for turn in preview_texts(encode(TEXT))] == ["Because."]


@pytest.mark.parametrize("many", [{}, {"n": 2}])
def test_the_prompts_and_texts_of_a_batched_job_come_in_order(many: dict[str, Any]) -> None:
    rows = [{"request": {"prompt": prompt} | many} for prompt in ("one", [5, 6])]
    assert [turn.text for turn in preview_prompts(pack_input(rows, batched=True))] == ["one", "tokens [5, 6]"]
    made = [[TEXT | {"text": f"{i}{k}"} for k in range(len(many) + 1)] for i in range(2)]
    results = [{"choices": choices, "usage": {}} if many else choices[0] for choices in made]
    texts = [turn.text for turn in preview_texts(encode(join_rows(results)))]
    assert texts == [choice["text"] for choices in made for choice in choices]


def test_a_long_conversation_and_a_long_text_are_cut_and_other_jobs_say_nothing() -> None:
    long = [{"role": "user", "content": "x" * 20_000}] * 80
    said = preview_prompts(pack_input([{"request": long}], batched=False))
    assert (len(said), said[-1].text, len(said[0].text)) == (MAX_TURNS + 1, "30 more", MAX_SAID + 1)
    for row in (5, {"x": 1}, {"request": {"messages": 5}}, {"request": "a", "other": 1}):
        assert preview_prompts(pack_input([row], batched=False)) == []
    assert preview_prompts(b"\xff") == preview_texts(b"\xff") == preview_texts(encode([1, "a"])) == []


@given(VALUES)
def test_any_value_gives_turns_and_no_error(value: Any) -> None:
    assert isinstance(preview_texts(encode(value)), list)
    assert isinstance(preview_prompts(pack_input([{"request": value}], batched=False)), list)
    assert isinstance(preview_texts(encode({"text": value, "finish_reason": value, "choices": value})), list)
