"""/v1/chat/completions and /v1/completions: one job for each request, whose result is waited for, or streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from forebay.api.context import Api, api_of, client_of, header_key, json_response, needs, own_key, read_json
from forebay.api.errors import Dialect, HttpError, error_response
from forebay.contract.errors import ForebayError
from forebay.contract.generation.openai import TextRequest, choices_of, total_usage
from forebay.contract.model import ModelVersion
from forebay.contract.wire.messages import TextPiece
from forebay.producer.async_client import AsyncJob
from forebay.producer.inputs import InputsFor

WAIT_S = 600.0  # for a job's end, as long as OpenAI's client waits for an answer
ALIVE_S = 15.0  # between two signs of life of a stream


class TextChanged(HttpError):
    """The job was run again, and its text is not the one whose beginning was streamed."""

    status, code = 500, "text-changed"


@needs("submit")
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation: one job, whose result is waited for, or streamed."""
    return await _create(request, chat=True)


@needs("submit")
async def create_completion(request: Request) -> Response:
    """Go on from each prompt: one job, likewise."""
    return await _create(request, chat=False)


async def _create(request: Request, chat: bool) -> Response:
    asked = TextRequest.read(await read_json(request, dict[str, Any]), chat)
    meant: list[ModelVersion] = []

    def read(version: ModelVersion) -> Any:
        meant.append(version)
        return asked.inputs(version)

    api, key, stream = api_of(request), header_key(request), bool(asked.about.stream)
    job = await client_of(request).predict(
        asked.model, InputsFor(read), batched=not chat, stream=stream, metadata=asked.about.metadata,
        idempotency_key=key and own_key(request, key),
    )  # fmt: skip
    ref = meant[0].ref
    if not stream:
        return json_response(asked.answer(ref, await api.result(job, WAIT_S), job.id))
    chunks = TextStream(api, asked, ref, job).chunks()
    first = await anext(chunks)  # until it is there, an error has a status of its own
    return EventStream(first, chunks)


class TextStream:
    """A job's text as chunks: what its worker tells while it runs, and at its end the rest, which the ledger has."""

    def __init__(self, api: Api, asked: TextRequest, ref: str, job: AsyncJob) -> None:
        self._api, self._asked, self._job = api, asked, job
        kind = "chat.completion.chunk" if asked.chat else "text_completion"
        self._tells_usage = asked.about.stream_options is not None and asked.about.stream_options.include_usage
        self._head = asked.head(ref, job.id) | {"object": kind} | ({"usage": None} if self._tells_usage else {})
        self._sent: dict[int, str] = {}

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Server-sent events. An error before the first one is raised; a later one is an event, in the place of `[DONE]`."""
        begun = False
        try:
            async with aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    if piece is None:
                        yield b": the job goes on\n\n"
                    elif text := self._news(piece):
                        yield self._text(piece.row * self._asked.choices + piece.choice, text)
                    else:
                        continue
                    begun = True
            if not await self._job.wait(0):
                raise self._api.late(self._job, WAIT_S)
            for chunk in self._rest(await self._job.result(0)):
                yield chunk
                begun = True
        except ForebayError as error:
            if not begun:
                raise
            yield _event(msgspec.Raw(error_response(error, Dialect.OPENAI, self._job.id).body))
        else:
            yield b"data: [DONE]\n\n"

    async def _pieces(self) -> AsyncGenerator[TextPiece | None]:
        """Text as the worker tells it, until the job has ended; None after a time without any."""
        loop, told = asyncio.get_running_loop(), asyncio.Queue[TextPiece | None]()

        def receive(piece: TextPiece) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody reads
                loop.call_soon_threadsafe(told.put_nowait, piece)

        ended = asyncio.ensure_future(self._job.wait(WAIT_S))
        ended.add_done_callback(lambda _: told.put_nowait(None))
        try:
            with self._api.client.sync.session.watcher.text_of(self._job.id, receive):
                while not (ended.done() and told.empty()):
                    try:
                        async with asyncio.timeout(ALIVE_S):
                            piece = await told.get()
                    except TimeoutError:
                        yield None
                    else:
                        if piece is not None:
                            yield piece
        finally:
            ended.cancel()

    def _news(self, piece: TextPiece) -> str:
        """What of a piece has not been sent yet; nothing when it does not join on to what has."""
        if piece.row >= len(self._asked.rows) or piece.choice >= self._asked.choices:
            return ""
        sent = self._sent.get(piece.row * self._asked.choices + piece.choice, "")
        again = len(sent) - piece.start
        return piece.text[again:] if again >= 0 and piece.text.startswith(sent[piece.start :]) else ""

    def _rest(self, result: Any) -> list[bytes]:
        """What is left to send of the job's result."""
        made, chunks = self._asked.made(result), []
        for i, choice in enumerate(choices_of(made)):
            sent, text = self._sent.get(i, ""), choice.text
            if not text.startswith(sent):
                raise TextChanged(f"job {self._job.id} was run again and gave another text", job_id=self._job.id)
            if len(text) > len(sent):
                chunks.append(self._text(i, text[len(sent) :]))
            chunks.append(self._chunk(i, "", choice.finish_reason, self._asked.logprobs(choice)))
        if self._tells_usage:
            chunks.append(_event(self._head | {"choices": [], "usage": total_usage(made)}))
        return chunks

    def _text(self, index: int, text: str) -> bytes:
        chunk = self._chunk(index, text)
        self._sent[index] = self._sent.get(index, "") + text
        return chunk

    def _chunk(
        self, index: int, text: str, reason: str | None = None, logprobs: Mapping[str, Any] | None = None
    ) -> bytes:
        role = {} if index in self._sent else {"role": "assistant"}
        said = {"delta": role | ({"content": text} if text else {})} if self._asked.chat else {"text": text}
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": reason}
        return _event(self._head | {"choices": [choice]})


class EventStream(StreamingResponse):
    """Sends server-sent events, and ends their generator at once when the client has gone away."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        super().__init__(self._all(first), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):
            await super().__call__(scope, receive, send)

    async def _all(self, first: bytes) -> AsyncIterator[bytes]:
        yield first
        async for event in self._rest:
            yield event


def _event(data: Any) -> bytes:
    return b"data: %s\n\n" % msgspec.json.encode(data)
