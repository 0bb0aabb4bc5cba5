"""Chat and text completions as OpenAI's own client uses them: answers, streams, errors, and the jobs behind them."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import redis

from forebay.api.openai import completions
from forebay.contract.generation import INPUTS, OUTPUTS
from forebay.contract.job import JobKind
from forebay.contract.wire.messages import TextPiece
from forebay.worker.announcer import Announcer
from support.api import RunningApi, running_api
from support.waiting import wait_until
from support.worker_stack import WorkerStack

SAID = "water behind a dam"
ASKED: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": SAID}]


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    stack = open_stack()
    stack.worker()
    stack.model("Writer", inputs=INPUTS, outputs=OUTPUTS)
    stack.model("Echo")
    stack.model("Echo", "empty", inputs=INPUTS, outputs=OUTPUTS)
    return stack


@pytest.fixture
def held(stack: WorkerStack) -> Iterator[WorkerStack]:
    """Models wait until `go_on`."""
    stack.hold()
    yield stack
    stack.go_on()


def test_a_conversation_is_answered_by_one_durable_job(client: openai.OpenAI, stack: WorkerStack) -> None:
    before = {job.id for job in stack.client.jobs()}
    made = client.chat.completions.create(
        model="writer", messages=ASKED, metadata={"for": "test"}, user="ada", store=False
    )
    [job] = [job for job in stack.client.jobs(metadata={"for": "test"}) if job.id not in before]
    assert (job.kind, job.ref, job.submitted_by) == (JobKind.PREDICT, "writer/1", "openai")
    assert (made.id, made.object, made.model) == (f"chatcmpl-{job.id}", "chat.completion", "writer/1")
    assert made.created == int(job.created_at.timestamp())
    [choice] = made.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content, choice.message.refusal) == ("assistant", SAID, None)
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (4, 4, 8)
    assert stack.client.job(job.id).result()["text"] == SAID


def test_several_choices_with_logprobs_and_a_limit_come_in_openais_form(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="writer", messages=ASKED, n=2, logprobs=True, top_logprobs=1, max_completion_tokens=2
    )
    texts = [(one.index, one.message.content, one.finish_reason) for one in made.choices]
    assert texts == [(0, "water behind", "length"), (1, "WATER BEHIND", "length")]
    assert made.usage is not None
    assert made.usage.completion_tokens == 4
    logprobs = made.choices[1].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    [first, _] = logprobs.content
    assert (first.token, first.logprob, bytes(first.bytes or [])) == ("WATER", -0.5, b"WATER")
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("top0", -1.0)]


@pytest.mark.parametrize(
    ("prompt", "texts", "tokens"),
    [
        ("a b", ["a b"], 2),
        (["a b", "c"], ["a b", "c"], 3),
        ([5, 7], ["(5, 7)"], 2),
        ([[5, 7], [6]], ["(5, 7)", "(6,)"], 3),
    ],
)
def test_prompts_are_gone_on_from_and_those_of_a_request_are_one_job(
    client: openai.OpenAI, stack: WorkerStack, prompt: Any, texts: list[str], tokens: int
) -> None:
    before = len(stack.client.jobs())
    made = client.completions.create(model="writer", prompt=prompt, n=2)
    assert made.object == "text_completion"
    assert [choice.text for choice in made.choices] == [text for one in texts for text in (one, one.upper())]
    assert [choice.index for choice in made.choices] == list(range(2 * len(texts)))
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (tokens, 2 * tokens)
    assert len(stack.client.jobs()) == before + 1


def test_logprobs_of_completions_are_lists_with_the_tokens_places(client: openai.OpenAI) -> None:
    made = client.completions.create(model="writer", prompt=["\u6c34\u00fcx a", "b"], logprobs=1)
    found = [choice.logprobs for choice in made.choices]
    assert found[0] is not None
    assert found[1] is not None
    assert (found[0].tokens, found[0].text_offset) == (["\u6c34\u00fcx", "a"], [0, 3])
    assert (found[0].token_logprobs, found[0].top_logprobs) == ([-0.5, -0.5], [{"top0": -1.0}] * 2)
    assert found[1].tokens == ["b"]


def test_a_request_that_comes_again_with_its_key_is_the_same_job(client: openai.OpenAI, stack: WorkerStack) -> None:
    before, key = len(stack.client.jobs()), {"Idempotency-Key": "text"}
    first, again = (client.chat.completions.create(model="writer", messages=ASKED, extra_headers=key) for _ in range(2))
    assert first == again
    assert len(stack.client.jobs()) == before + 1
    with pytest.raises(openai.BadRequestError, match="'text'"):
        client.chat.completions.create(model="writer", messages=ASKED, n=2, extra_headers=key)


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("more", "words", "param"),
    [
        ({"tools": [TOOL]}, "'tools': this field is not supported", "tools"),
        ({"audio": {"voice": "ash", "format": "wav"}}, "'audio'", "audio"),
        ({"logit_bias": {"5": 1}}, "'logit_bias'", "logit_bias"),
        ({"extra_body": {"magic": 1}}, "'magic'", "magic"),
        ({"extra_body": {"prompt": "a"}}, "takes messages, not prompt", "prompt"),
        ({"messages": []}, "messages: expected a list of at least one message", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text is read", r"messages[0].content[0]"),
        ({"temperature": 3}, "temperature: expected a number, from 0 to 2", "temperature"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "contradicts max_tokens", "max_completion_tokens"),
        ({"n": 0}, "n: expected", "n"),
        ({"stream_options": {"include_usage": True}}, "only for stream=true", "stream_options"),
        ({"metadata": {"a": 1}}, "Expected `str`, got `int`", "metadata[...]"),
        ({"user": 5}, "got `int`", "user"),
        ({"model": "echo"}, r"model echo/1 \(runtime python\) does not generate text", "model"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_the_field_and_stores_nothing(
    client: openai.OpenAI, stack: WorkerStack, more: dict[str, Any], words: str, param: str
) -> None:
    before = len(stack.client.jobs())
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        client.chat.completions.create(**{"model": "writer", "messages": ASKED} | more)
    assert refused.value.param == param
    assert len(stack.client.jobs()) == before


@pytest.mark.parametrize(
    ("asked", "words", "param"),
    [
        ({}, "prompt is missing", "prompt"), ({"prompt": []}, "prompt has 0 texts", "prompt"),
        ({"prompt": ["a", 1]}, "got 1", "prompt"),
        ({"prompt": "a", "best_of": 2}, "'best_of'", "best_of"), ({"prompt": "a", "echo": True}, "'echo'", "echo"),
        ({"prompt": "a", "messages": ASKED}, "takes prompt, not messages", "messages"),
        ({"prompt": "a", "model": "echo"}, "does not generate text", "model"),
    ],
)  # fmt: skip
def test_a_prompt_that_cannot_be_gone_on_from_is_refused(
    client: openai.OpenAI, asked: dict[str, Any], words: str, param: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        client.post("/completions", body={"model": "writer"} | asked, cast_to=object)
    assert refused.value.param == param


def test_a_model_that_there_is_not_is_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model is called 'ada'"):
        client.chat.completions.create(model="ada", messages=ASKED)


@pytest.mark.parametrize("stream", [False, True])
def test_a_job_that_fails_or_makes_no_text_is_told_with_a_status(client: openai.OpenAI, stream: bool) -> None:
    bad: Any = [{"role": "user", "content": "bad"}]
    with pytest.raises(openai.BadRequestError, match="ValueError: a bad text") as failed:
        client.chat.completions.create(model="writer", messages=bad, stream=stream)
    assert failed.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.BadRequestError, match="model empty made no text"):
        client.chat.completions.create(model="empty", messages=ASKED, stream=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_a_job_that_is_late_is_a_504_that_names_it_and_goes_on(
    client: openai.OpenAI, held: WorkerStack, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(completions, "WAIT_S", 0.1)
    with pytest.raises(openai.APIStatusError, match=r"has not ended after 0\.1 s") as late:
        client.chat.completions.create(model="writer", messages=ASKED, stream=stream)
    assert late.value.status_code == 504
    [job] = held.client.jobs(state=["queued", "running"])
    assert job.id in str(late.value)
    held.go_on()
    assert held.client.job(job.id).result(60)["text"] == SAID


def chunks_of(stream: Any) -> tuple[str, list[str | None], list[Any]]:
    """The text of a stream's chunks, why they ended, and the chunks."""
    found = list(stream)
    choices = [choice for chunk in found for choice in chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    return text, [choice.finish_reason for choice in choices], found


def test_without_partial_text_a_stream_gives_the_whole_at_the_end_and_its_usage(client: openai.OpenAI) -> None:
    asked = client.chat.completions.create(
        model="writer", messages=ASKED, stream=True, logprobs=True, stream_options={"include_usage": True}
    )
    text, reasons, found = chunks_of(asked)
    assert (text, reasons) == (SAID, [None, "stop"])
    assert [chunk.usage is None for chunk in found] == [True, True, False]
    assert found[0].choices[0].delta.role == "assistant"
    assert len(found[1].choices[0].logprobs.content) == 4
    assert (found[-1].choices, found[-1].usage.total_tokens) == ([], 8)
    assert {(chunk.object, chunk.model, chunk.created) for chunk in found} == {
        ("chat.completion.chunk", "writer/1", found[0].created)
    }


def tell(stack: WorkerStack, api: RunningApi, *pieces: tuple[int, int, int, str]) -> str:
    """Say these pieces of the only open job as its worker would; the job's id."""
    [job] = wait_until(lambda: stack.client.jobs(state="running"), "a job runs")
    session = api.api.client.sync.session
    wait_until(lambda: job.id in session.watcher.text_wanted(), "somebody listens")
    with redis.Redis.from_url(stack.settings.broker) as connection:
        Announcer(connection).announce_text(session.id, [TextPiece(job.id, *piece) for piece in pieces])
    return job.id


def test_text_comes_as_it_is_made_and_the_rest_from_the_ledger(
    client: openai.OpenAI, api: RunningApi, held: WorkerStack
) -> None:
    told = [
        (0, 0, 0, "water"),
        (0, 0, 5, " be"),
        (0, 0, 3, "er behi"),
        (0, 0, 99, "lost"),
        (0, 7, 0, "x"),
        (3, 0, 0, "x"),
    ]
    teller = threading.Thread(target=tell, args=(held, api, *told))
    teller.start()
    stream = client.chat.completions.create(model="writer", messages=ASKED, stream=True)
    begun = [next(stream).choices[0].delta.content for _ in range(3)]
    assert begun == ["water", " be", "hi"]
    held.go_on()
    text, reasons, _ = chunks_of(stream)
    teller.join()
    assert ("".join(begun) + text, reasons) == (SAID, [None, "stop"])  # type: ignore[arg-type]


def test_streams_of_several_prompts_and_choices_are_told_apart(
    client: openai.OpenAI, api: RunningApi, held: WorkerStack
) -> None:
    teller = threading.Thread(target=tell, args=(held, api, (1, 1, 0, "C"), (0, 0, 0, "a ")))
    teller.start()
    stream = client.completions.create(model="writer", prompt=["a b", "c"], n=2, stream=True)
    first = [next(stream) for _ in range(2)]
    held.go_on()
    teller.join()
    texts = dict.fromkeys(range(4), "")
    for chunk in [*first, *stream]:
        [choice] = chunk.choices
        texts[choice.index] += choice.text
    assert texts == {0: "a b", 1: "A B", 2: "c", 3: "C"}


def test_a_text_that_turns_out_another_ends_the_stream_with_an_error(
    client: openai.OpenAI, api: RunningApi, held: WorkerStack
) -> None:
    teller = threading.Thread(target=tell, args=(held, api, (0, 0, 0, "fire")))
    teller.start()
    stream = client.chat.completions.create(model="writer", messages=ASKED, stream=True)
    assert next(stream).choices[0].delta.content == "fire"
    held.go_on()
    with pytest.raises(openai.APIError, match="was run again and gave another text") as changed:
        list(stream)
    assert changed.value.code == "text_changed"
    teller.join()


def test_a_client_that_goes_away_leaves_its_job_running(
    client: openai.OpenAI, api: RunningApi, held: WorkerStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completions, "ALIVE_S", 0.05)
    answer = api.api.client.sync.session.watcher.text_wanted
    stream = client.chat.completions.with_streaming_response.create(model="writer", messages=ASKED, stream=True)
    with stream as response:
        lines = response.iter_lines()  # kept: the response is closed with its iterator
        assert next(lines) == ": the job goes on"
        [job] = wait_until(answer, "somebody listens")
    wait_until(lambda: not answer(), "nobody listens any more")
    held.go_on()
    assert held.client.job(job).result(60)["text"] == SAID


def test_the_asynchronous_client_gets_the_same(api: RunningApi) -> None:
    async def ask() -> tuple[list[str | None], str]:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{api.port}/v1", api_key="none") as client:
            asked = (client.chat.completions.create(model="writer", messages=ASKED) for _ in range(20))
            made = [one.choices[0].message.content for one in await asyncio.gather(*asked)]
            stream = await client.chat.completions.create(model="writer", messages=ASKED, stream=True)
            return made, "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == ([SAID] * 20, SAID)


def test_a_server_that_is_stopped_ends_its_streams_with_the_jobs_id(held: WorkerStack) -> None:
    with (
        running_api(held.settings) as api,
        openai.OpenAI(base_url=f"http://127.0.0.1:{api.port}/v1", api_key="none") as client,
    ):
        teller = threading.Thread(target=tell, args=(held, api, (0, 0, 0, "water")))
        teller.start()
        stream = client.chat.completions.create(model="writer", messages=ASKED, stream=True)
        assert stream.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert next(stream).choices[0].delta.content == "water"
        teller.join()
        api.stop()
        with pytest.raises(openai.APIError, match="goes on") as stopped:
            list(stream)
    [job] = held.client.jobs(state="running")
    assert (stopped.value.code, job.id in str(stopped.value)) == ("server_stopping", True)
