"""What a row may ask of a language model, and what it is told when it asks for something else."""

import pytest

from forebay.contract.errors import InvalidInput
from forebay.contract.generation import Choice, Message, Sampling, completion, parse_generation

USER = {"role": "user", "content": "Why?"}
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}}
PARTS = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]
NAMED = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}


@pytest.mark.parametrize(
    ("value", "prompt"),
    [
        ("Why?", "Why?"),
        ({"prompt": "Why?"}, "Why?"),
        ([5, 0, 7], (5, 0, 7)),
        ({"prompt": [5, 0, 7]}, (5, 0, 7)),
        ([USER], (Message("user", "Why?"),)),
        ({"messages": [USER]}, (Message("user", "Why?"),)),
        ([{"role": "user", "content": PARTS}], (Message("user", "Why?"),)),
    ],
)  # fmt: skip
def test_a_prompt_token_ids_messages_and_bodies_are_read(value, prompt):
    request = parse_generation(value)
    assert request.prompt == prompt
    assert request.messages == (prompt if isinstance(prompt[0], Message) else None)
    assert request.sampling == Sampling()


def test_sampling_fields_are_read_by_the_names_that_openai_gave_them():
    body = {
        "prompt": "x", "max_completion_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 20, "seed": -1, "stop": "END",
        "n": 2, "logprobs": 3, "presence_penalty": 1, "frequency_penalty": -1.5, "response_format": NAMED,
    }  # fmt: skip
    expected = Sampling(4, 0.5, 0.9, 20, -1, ("END",), 2, 3, 1.0, -1.5, SCHEMA)
    assert parse_generation(body).sampling == expected


def test_a_field_that_is_none_is_as_if_it_were_left_out():
    body = {"messages": [USER], "prompt": None, "stop": None, "n": None, "logprobs": None, "response_format": None}
    assert parse_generation(body) == parse_generation([USER])


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [({}, None), ({"logprobs": False}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 5}, 5)],
)
def test_a_conversation_asks_for_logprobs_by_a_flag_and_a_number(fields, wanted):
    assert parse_generation({"messages": [USER], **fields}).sampling.logprobs == wanted


@pytest.mark.parametrize(
    ("format", "schema"), [({"type": "text"}, None), ({"type": "json_object"}, {"type": "object"}), (NAMED, SCHEMA)]
)
def test_a_response_format_gives_the_schema(format, schema):
    assert parse_generation({"prompt": "x", "response_format": format}).sampling.schema == schema


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5, "expected a prompt"),
        (None, "expected a prompt"),
        ({}, "either prompt or messages"),
        ({"prompt": "x", "messages": [USER]}, "either prompt or messages"),
        ([], "prompt: expected one text"),
        ([True], "prompt: expected one text"),
        ([3, -1], "prompt: expected one text"),
        ({"prompt": ["two", "texts"]}, "prompt: expected one text"),
        ({"messages": []}, "messages: expected a list"),
        ([USER, "text"], r"messages\[1\]: expected a dict"),
        ([{"role": "user"}], r"messages\[0\]: content: expected text"),
        ([{"role": "pope", "content": "x"}], r"messages\[0\]: role: expected one of"),
        ([USER | {"tool_calls": []}], r"messages\[0\]: there is no 'tool_calls'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"messages\[0\].content\[0\]: .* only text is read"),
        ({"prompt": "x", "best_of": 2}, "'best_of': this field is not supported"),
        ({"prompt": "x", "schema": {}}, "'schema': this field is not supported"),
        ({"prompt": "x", "top_logprobs": 2}, "'top_logprobs': this field is not supported"),
        ({"prompt": "x", "temperature": float("nan")}, "temperature: expected a number"),
        ({"prompt": "x", "temperature": 2.5}, "temperature: expected a number, from 0 to 2"),
        ({"prompt": "x", "top_p": -0.1}, "top_p: expected a number, from 0 to 1"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens: expected a whole number, from 1"),
        ({"prompt": "x", "max_tokens": 1.5}, "max_tokens: expected a whole number"),
        ({"prompt": "x", "max_tokens": 3, "max_completion_tokens": 4}, "contradicts max_tokens"),
        ({"prompt": "x", "seed": 2**64}, "seed: expected a whole number"),
        ({"prompt": "x", "stop": ["a", ""]}, r"stop\[1\]: expected a text, or up to 16"),
        ({"prompt": "x", "stop": ["a"] * 17}, "stop: expected a text, or up to 16"),
        ({"prompt": "x", "logprobs": True}, "logprobs: expected a whole number"),
        ({"messages": [USER], "logprobs": 1}, "logprobs: expected true or false"),
        ({"messages": [USER], "top_logprobs": 1}, "top_logprobs: expected a whole number from 0 to 20 beside logprobs"),
        ({"prompt": "x", "response_format": "json"}, "response_format: Expected `object`"),
        ({"prompt": "x", "response_format": {"type": "json_schema"}}, "needs json_schema"),
        ({"prompt": "x", "response_format": NAMED | {"type": "text"}}, "no other type takes it"),
        ({"prompt": "x", "response_format": {"type": "json_object", "strict": True}}, "response_format: .*`strict`"),
    ],
)
def test_what_is_not_valid_is_refused_by_its_name(value, words):
    with pytest.raises(InvalidInput, match=words):
        parse_generation(value)


def test_one_choice_is_the_result_itself_and_several_share_a_usage():
    choice = Choice(text="yes", finish_reason="stop")
    usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    assert completion([choice], 5, 4) == {"text": "yes", "finish_reason": "stop", "usage": usage}
    assert completion([choice, choice], 5, 4) == {"choices": [choice, choice], "usage": usage}
