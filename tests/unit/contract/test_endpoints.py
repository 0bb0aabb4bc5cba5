"""Options of a model that another server runs, and the operator's list."""

from typing import Any

import pytest

from forebay.contract.errors import InvalidInput
from forebay.contract.runtimes.endpoints import RemoteOptions

GPU7 = {"base_url": "http://gpu7:8000/v1", "model": "Qwen3"}
HOSTED = {"base_url": "https://api.openai.com/v1", "model": "gpt", "api_key_env": "OPENAI_API_KEY"}


def test_requests_go_below_the_base_url() -> None:
    urls = [RemoteOptions.parse(GPU7 | {"endpoint": e}).url for e in ("chat", "completions", "embeddings")]
    assert urls == [f"http://gpu7:8000/v1/{path}" for path in ("chat/completions", "completions", "embeddings")]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "Qwen3"}, "missing required field `base_url`"),
        (GPU7 | {"modle": "x"}, "there is no 'modle'"),
        (GPU7 | {"endpoint": "images"}, "one of chat, completions, embeddings, got 'images'"),
        (GPU7 | {"concurrency": 0}, "concurrency"),
        (GPU7 | {"model": ""}, "the model's name"),
        (GPU7 | {"api_key_env": "sk-live-secret!"}, "not a key"),
    ],
)
def test_options_that_will_not_do_are_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        RemoteOptions.parse(given)


def test_a_key_given_for_the_name_of_its_variable_is_not_repeated() -> None:
    with pytest.raises(InvalidInput) as error:
        RemoteOptions.parse(GPU7 | {"api_key_env": "sk-live-secret!"})
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "gpu7:8000/v1", "ftp://gpu7/v1", "http://user:pw@gpu7/v1", "http://gpu7/v1?x=1", "http://gpu7/v1#x", "http://gpu7/a/../v1",
        "http://gpu7/./v1", "http://gpu7\\@evil/v1", "http://gpu7/%2e%2e/v1", "http://gpu7:99999/v1", "http://gpu7 /v1", "http:///v1",
        "http://gpu7/v1\n", "http://gpu７/v1",
    ],
)  # fmt: skip
def test_a_url_that_two_readers_could_understand_differently_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="not a base URL"):
        RemoteOptions.parse(GPU7 | {"base_url": url})


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        (GPU7, ["http://gpu7:8000/v1"]),
        (GPU7, ["https://api.openai.com", "http://GPU7:8000"]),
        (GPU7 | {"base_url": "http://gpu7:80/v1/"}, ["http://gpu7/"]),
        (HOSTED, ["https://api.openai.com:443/v1 OTHER OPENAI_API_KEY"]),
        (HOSTED | {"api_key_env": None}, ["https://api.openai.com/v1 OPENAI_API_KEY"]),
    ],
)
def test_what_the_operator_lists_is_allowed(given: dict[str, Any], allowed: list[str]) -> None:
    RemoteOptions.parse(given).check_allowed(allowed)


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        (GPU7, []),
        (GPU7, ["https://gpu7:8000/v1"]),
        (GPU7, ["http://gpu7/v1"]),
        (GPU7, ["http://gpu7.evil:8000/v1"]),
        (GPU7, ["http://gpu7:8000/v2", "http://gpu7:8000/v"]),
        (GPU7 | {"base_url": "http://gpu7:8000"}, ["http://gpu7:8000/v1"]),
        (HOSTED, ["https://api.openai.com/v1"]),
        (HOSTED, ["https://api.openai.com/v1 OTHER", "http://gpu7:8000 OPENAI_API_KEY"]),
    ],
)
def test_what_the_operator_does_not_list_is_refused_with_the_entry_that_is_missing(
    given: dict[str, Any], allowed: list[str]
) -> None:
    with pytest.raises(InvalidInput, match=r"lists 'http.*' in allowed_endpoints \(FOREBAY_ALLOWED_ENDPOINTS\)"):
        RemoteOptions.parse(given).check_allowed(allowed)
