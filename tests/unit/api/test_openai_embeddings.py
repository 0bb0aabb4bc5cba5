"""What a job's result becomes in the form of OpenAI's embeddings."""

import base64

import numpy as np
import pytest

from forebay.api.openai.embeddings import EmbeddingRequest
from forebay.contract.errors import InvalidInput

VECTORS = np.array([[1.0, 0.1], [-2.0, 3.0]])


def test_base64_is_little_endian_float32() -> None:
    asked = EmbeddingRequest("m", ["a", "b"], "base64")
    answer = asked.answer("m/1", {"output": VECTORS, "usage": {"tokens": 5}})
    made = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4").tolist() for one in answer["data"]]
    assert made == VECTORS.astype(np.float32).tolist()
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


def test_tokens_that_the_runtime_did_not_count_are_not_said_to_be_none() -> None:
    answer = EmbeddingRequest("m", "a").answer("m/1", {"output": VECTORS[:1], "usage": {"tokens": None}})
    assert answer["usage"] is None
    assert answer["data"] == [{"object": "embedding", "index": 0, "embedding": [1.0, 0.1]}]


def test_a_vector_that_json_cannot_carry_is_refused_as_floats_and_given_as_base64() -> None:
    result = {"output": np.array([[np.nan]], np.float32), "usage": {"tokens": 1}}
    with pytest.raises(InvalidInput, match="NaN or infinity"):
        EmbeddingRequest("m", "a").answer("m/1", result)
    assert EmbeddingRequest("m", "a", "base64").answer("m/1", result)["data"][0]["embedding"] == "AADAfw=="


def test_a_number_too_large_for_float32_is_refused_as_base64_not_made_infinite() -> None:
    result = {"output": np.array([[1e300]]), "usage": {"tokens": 1}}
    with pytest.raises(InvalidInput, match="too large for float32"):
        EmbeddingRequest("m", "a", "base64").answer("m/1", result)
