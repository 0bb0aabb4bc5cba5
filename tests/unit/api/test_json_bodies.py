"""JSON bodies: an object that has a key twice is refused, for the decoder would drop a value without a word."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.api.context import parse_json
from forebay.api.inference.requests import InferenceRequest
from forebay.contract.errors import InvalidInput

SPACE = st.sampled_from(["", " ", "\n\t "])
TEXTS = st.sampled_from(
    ['""', '"a"', '"\\u0061"', '"b:"', '"\\""', '"\\u0022"', '"\\\\"', '"\\\\\\":{"', '"{"', '"}"', '"é"']
)


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    space = draw(SPACE)
    pairs = draw(st.lists(st.tuples(TEXTS, inner), max_size=3))
    return "{" + space + ",".join(f"{key}{space}:{space}{value}{space}" for key, value in pairs) + "}"


def arrays(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(inner, max_size=3).map(lambda items: "[" + " ,".join(items) + "]")


VALUES = st.recursive(
    TEXTS | st.sampled_from(["1", "-2.5e3", "null"]), lambda inner: objects(inner) | arrays(inner), max_leaves=12
)


def has_key_twice(text: str) -> bool:
    sizes: list[bool] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        sizes.append(len(dict(pairs)) < len(pairs))

    json.loads(text, object_pairs_hook=note)
    return any(sizes)


@given(VALUES)
def test_exactly_the_objects_with_a_key_twice_are_refused(text: str) -> None:
    if has_key_twice(text):
        with pytest.raises(InvalidInput, match=r"an object has the key .* twice"):
            parse_json(text.encode(), object)
    else:
        assert parse_json(text.encode(), object) == json.loads(text)


def test_what_a_request_has_besides_is_looked_at_too() -> None:
    tensor = b'{"name": "x", "datatype": "FP32", "shape": [1], "data": [1], "data": [2]}'
    for body in (b'{"inputs": [%s]}' % tensor, b'{"inputs": [], "later": {"a": 1, "a": 1}}'):
        with pytest.raises(InvalidInput, match=r"an object has the key '(data|a)' twice"):
            parse_json(body, InferenceRequest)
