"""One Forebay in front of another: a version with the runtime `openai`, whose endpoint is a second Forebay's OpenAI API."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from forebay.contract.generation import INPUTS, OUTPUTS
from support.api import RunningApi, running_api
from support.waiting import wait_until
from support.worker_stack import WorkerStack


@pytest.fixture(scope="module")
def far(open_stack: Callable[..., WorkerStack]) -> Iterator[tuple[WorkerStack, RunningApi]]:
    """The Forebay that runs the model."""
    stack = open_stack()
    stack.worker()
    stack.model("Writer", inputs=INPUTS, outputs=OUTPUTS)
    stack.model("Vectors")
    with running_api(stack.settings) as api:
        yield stack, api


@pytest.fixture(scope="module")
def client(
    far: tuple[WorkerStack, RunningApi], open_stack: Callable[..., WorkerStack], server: Any
) -> Iterator[openai.OpenAI]:
    """OpenAI's client of the Forebay in front of it, whose ledger and queue are its own."""
    url = f"http://127.0.0.1:{far[1].port}/v1"
    near = open_stack(ALLOWED_ENDPOINTS=url, BROKER=server.url.replace("/0", "/1"))
    for endpoint in ("chat", "completions"):
        options = {"base_url": url, "model": "writer", "endpoint": endpoint}
        near.client.models.register(endpoint, runtime="openai", options=options)
    near.worker(queues="remote")
    with (
        running_api(near.settings) as api,
        openai.OpenAI(base_url=f"http://127.0.0.1:{api.port}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_a_chat_goes_through_both_with_its_choices_usage_and_logprobs(
    client: openai.OpenAI, far: tuple[WorkerStack, RunningApi]
) -> None:
    made = client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "a dam holds water"}], n=2, logprobs=True, top_logprobs=1,
        max_tokens=3,
    )  # fmt: skip
    texts = [(choice.message.content, choice.finish_reason) for choice in made.choices]
    assert texts == [("a dam holds", "length"), ("A DAM HOLDS", "length")]
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (4, 6)
    assert made.choices[0].logprobs is not None
    assert [token.token for token in made.choices[0].logprobs.content or []] == ["a", "dam", "holds"]
    assert far[0].states() == {"succeeded": 1}


def test_an_error_of_the_one_behind_is_told_with_its_words(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="a bad text"):
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "bad"}])


def test_a_batch_goes_through_both_and_its_usage_is_summed(
    client: openai.OpenAI, far: tuple[WorkerStack, RunningApi]
) -> None:
    before = far[0].states().get("succeeded", 0)
    asked = [{"custom_id": f"{i}", "method": "POST", "url": "/v1/completions",
              "body": {"model": "completions", "prompt": f"line {i}"}} for i in range(100)]  # fmt: skip
    file = client.files.create(file=("in", "\n".join(map(json.dumps, asked)).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    batch = wait_until(lambda: found if (found := client.batches.retrieve(made.id)).completed_at else None, "it ends")
    told = [json.loads(line) for line in client.files.content(batch.output_file_id or "").text.splitlines()]
    assert [one["response"]["body"]["choices"][0]["text"] for one in told] == [f"line {i}" for i in range(100)]
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (200, 200)
    assert far[0].states()["succeeded"] == before + 100
