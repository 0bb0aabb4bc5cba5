"""What the body of a request for text becomes, whatever stands in it, and what of a result is no text."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import InvalidInput
from forebay.contract.generation.openai import TextRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
FIELDS = (
    "model", "messages", "prompt", "stream", "stream_options", "metadata", "user", "store", "n", "stop", "seed", "logprobs",
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "top_logprobs", "response_format", "tools",
)  # fmt: skip
MESSAGES = st.just([{"role": "user", "content": "a"}])
BODIES = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(FIELDS, JSON) | {"model": st.text(), "messages": MESSAGES | JSON}
)


@given(BODIES, st.booleans())
def test_any_body_is_a_request_or_refused(body: dict[str, Any], chat: bool) -> None:
    try:
        asked = TextRequest.read(body, chat)
    except InvalidInput:
        return
    assert len(asked.rows) == 1 or not chat
    assert asked.choices >= 1


@given(JSON, st.booleans())
def test_any_result_is_text_or_refused(result: Any, chat: bool) -> None:
    given = {"messages": [{"role": "user", "content": "a"}]} if chat else {"prompt": "a"}
    asked = TextRequest.read({"model": "m"} | given, chat)
    with pytest.raises(InvalidInput, match="model m made no text"):
        asked.answer("m/1", result, "0" * 32)


def test_usage_that_one_row_does_not_tell_is_null_and_not_a_sum_of_the_others() -> None:
    asked = TextRequest.read({"model": "m", "prompt": ["a", "b"]}, chat=False)
    told = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    rows = [{"text": "x", "finish_reason": "stop", "usage": told}, {"text": "y", "finish_reason": "stop"}]
    answer = asked.answer("m/1", rows, "0" * 32)
    assert (answer["usage"], [choice["text"] for choice in answer["choices"]]) == (None, ["x", "y"])


def test_a_result_of_fewer_rows_or_choices_than_asked_is_refused() -> None:
    asked = TextRequest.read({"model": "m", "prompt": ["a", "b"]}, chat=False)
    one = {"text": "x", "finish_reason": "stop"}
    for short in (
        [one, {"choices": [one, one], "usage": None}],
        [{"text": "x", "finish_reason": "stop"}],
        {"text": ["x"], "finish_reason": ["stop"]},
    ):
        with pytest.raises(InvalidInput, match="made no text"):
            asked.answer("m/1", short, "0" * 32)
