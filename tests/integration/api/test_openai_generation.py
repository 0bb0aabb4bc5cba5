"""A language model behind OpenAI's API, from the request to the worker's tokens and back."""

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from forebay.storage.workers import WorkerRegistry
from support.api import running_api
from support.language_models import save_llama
from support.waiting import wait_until
from support.worker_stack import WorkerStack


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack], tmp_path_factory: pytest.TempPathFactory) -> WorkerStack:
    stack = open_stack()
    stack.worker()
    stack.client.models.register("llama", save_llama(Path(tmp_path_factory.mktemp("llama"))))
    return stack


@pytest.fixture(scope="module")
def client(stack: WorkerStack) -> Iterator[openai.OpenAI]:
    with (
        running_api(stack.settings) as api,
        openai.OpenAI(base_url=f"http://127.0.0.1:{api.port}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_a_stream_has_the_text_in_pieces_as_its_tokens_are_made_and_the_job_has_it_whole(
    client: openai.OpenAI, stack: WorkerStack
) -> None:
    client.completions.create(model="llama", prompt="warm", max_tokens=1)
    stream = client.completions.create(
        model="llama", prompt="water", max_tokens=300, seed=1, n=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    job = stack.client.job(chunks[0].id.removeprefix("cmpl-"))
    texts, pieces = {0: "", 1: ""}, 0
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            pieces += bool(choice.text)
    assert pieces > 4
    [made] = job.result()["choices"]  # of the one prompt
    assert [choice["text"] for choice in made] == [texts[0], texts[1]]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == job.result()["usage"]["completion_tokens"][0]
    counted = wait_until(
        lambda: [found for report in WorkerRegistry(stack.ledger).reports()
                 if (found := report.statistics).histograms.get("first_text_seconds")], "its worker has told its counts"
    )  # fmt: skip
    assert counted[0].histograms["first_text_seconds"]["llama", "1"].count >= 1
    assert counted[0].total("completion_tokens_total", "llama", "1") > 0


def test_a_prompt_that_is_too_long_is_refused_with_its_length(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"the prompt has [\d,]+ tokens"):
        client.completions.create(model="llama", prompt="water " * 3000)


def test_logprobs_and_a_schema_come_through(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    made = client.chat.completions.create(
        model="llama", messages=[{"role": "user", "content": "a?"}], temperature=0, max_tokens=60, logprobs=True, top_logprobs=2,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )  # fmt: skip
    [choice] = made.choices
    assert "".join((choice.message.content or "").split()) in ('{"a":true}', '{"a":false}')
    assert choice.logprobs is not None
    assert b"".join(bytes(token.bytes or []) for token in choice.logprobs.content or []).decode().startswith("{")
