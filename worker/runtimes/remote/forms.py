"""What is sent to an endpoint and what its answers mean: chat, completions, embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from msgspec import Struct

from forebay.contract.errors import ForebayError, InvalidInput
from forebay.contract.generation import Choice, Usage, completion, parse_generation, usage
from forebay.contract.references import shown
from forebay.contract.signature import Row


class WrongAnswer(Exception):
    """The server said that all went well, and gave something else than was asked."""


class NoText(ForebayError):
    """The model answered without a text: it refused, or thought until it had no tokens left."""


class Form(Protocol):
    """One endpoint's form."""

    rows_at_once: bool  # whether one request may hold several rows

    def body(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The request's body, without the model; InvalidInput for a row that the endpoint does not take."""

    def read(self, rows: Sequence[Row], answer: bytes) -> tuple[list[Any], Usage]:
        """An output or error for each row, and what the request cost; WrongAnswer."""


class _Usage(Struct):
    prompt_tokens: int
    completion_tokens: int = 0

    def counted(self) -> Usage:
        return usage(self.prompt_tokens, self.completion_tokens)


class _Message(Struct):
    content: str | None = None
    refusal: str | None = None


class _Logprobs(Struct):
    content: list[dict[str, Any]] | None = None


class _ChatChoice(Struct):
    index: int
    message: _Message
    finish_reason: str
    logprobs: _Logprobs | None = None


class _ChatAnswer(Struct):
    choices: list[_ChatChoice]
    usage: _Usage


class _TextLogprobs(Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None


class _TextChoice(Struct):
    index: int
    text: str
    finish_reason: str
    logprobs: _TextLogprobs | None = None


class _TextAnswer(Struct):
    choices: list[_TextChoice]
    usage: _Usage


class _Vector(Struct):
    index: int
    embedding: list[float]


class _EmbeddingsAnswer(Struct):
    data: list[_Vector]
    usage: _Usage | None = None  # a server that does not count says so


class Generation:
    """Chat and completions: one row is one request."""

    rows_at_once = False

    def __init__(self, chat: bool) -> None:
        self._chat = chat

    def body(self, rows: Sequence[Row]) -> dict[str, Any]:
        value = rows[0]["request"]
        request = parse_generation(value)
        given = {name: item for name, item in value.items() if item is not None} if isinstance(value, Mapping) else {}
        if self._chat:
            if request.messages is None and not isinstance(request.prompt, str):
                raise InvalidInput("prompt: this endpoint takes a text or messages, no ids of tokens")
            if request.messages is None and "logprobs" in given:
                given |= {"logprobs": True, "top_logprobs": given["logprobs"]}
            given.pop("prompt", None)
            messages = request.messages or [{"role": "user", "content": request.prompt}]
            return given | {"messages": msgspec.to_builtins(messages)}
        if request.messages is not None:
            raise InvalidInput("messages: this endpoint takes a prompt; register the model with endpoint=chat")
        return given | {"prompt": request.prompt}

    def read(self, rows: Sequence[Row], answer: bytes) -> tuple[list[Any], Usage]:
        wanted = parse_generation(rows[0]["request"]).sampling.n
        made = _decoded(answer, _ChatAnswer if self._chat else _TextAnswer)
        _one_for_each([choice.index for choice in made.choices], wanted, "choices")
        used = made.usage.counted()
        try:
            choices = [_choice(choice) for choice in sorted(made.choices, key=lambda choice: choice.index)]
        except NoText as error:
            return [error], used  # it costs all the same
        return [completion(choices, used["prompt_tokens"], used["completion_tokens"])], used


class Embeddings:
    """Texts, several to a request."""

    rows_at_once = True

    def body(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {"input": [row["text"] for row in rows], "encoding_format": "float"}

    def read(self, rows: Sequence[Row], answer: bytes) -> tuple[list[Any], Usage]:
        made = _decoded(answer, _EmbeddingsAnswer)
        _one_for_each([vector.index for vector in made.data], len(rows), "vectors")
        vectors: list[Any] = [None] * len(rows)
        for vector in made.data:
            array = np.array(vector.embedding, np.float64)  # (dim,)
            if not array.size or np.abs(array).max() > np.finfo(np.float32).max:
                raise WrongAnswer("a vector is empty, or has a number that float32 cannot hold")
            vectors[vector.index] = array.astype(np.float32)
        return vectors, made.usage.counted() if made.usage else usage(0, 0)


def form_of(endpoint: str) -> Form:
    return Embeddings() if endpoint == "embeddings" else Generation(chat=endpoint == "chat")


def _decoded(answer: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WrongAnswer(str(error)) from error


def _one_for_each(indices: list[int], wanted: int, what: str) -> None:
    if sorted(indices) != list(range(wanted)):
        raise WrongAnswer(f"{wanted} {what} were asked for, and it has those with the indices {indices[:20]}")


def _choice(choice: _ChatChoice | _TextChoice) -> Choice:
    """One text; its `finish_reason` is what the server says."""
    text, tokens = _text(choice) if isinstance(choice, _TextChoice) else _message(choice)
    made = {"text": text, "finish_reason": choice.finish_reason}
    return made if tokens is None else made | {"logprobs": tokens}  # type: ignore[return-value]


def _message(choice: _ChatChoice) -> tuple[str, list[Any] | None]:
    said = choice.message
    if said.content is None:
        why = shown(said.refusal) if said.refusal else "no refusal"
        raise NoText(f"the model gave no text: finish_reason {shown(choice.finish_reason)}, {why}")
    return said.content, choice.logprobs.content if choice.logprobs else None


def _text(choice: _TextChoice) -> tuple[str, list[Any] | None]:
    """Its tokens as those of chat are told, without `bytes`: the server does not tell them."""
    told = choice.logprobs
    if told is None:
        return choice.text, None
    tops = told.top_logprobs or [None] * len(told.tokens)
    if not len(told.tokens) == len(told.token_logprobs) == len(tops):
        raise WrongAnswer("its logprobs are not one for each token")
    return choice.text, [
        {"token": token, "logprob": logprob}
        | ({} if top is None else {"top_logprobs": [{"token": t, "logprob": p} for t, p in top.items()]})
        for token, logprob, top in zip(told.tokens, told.token_logprobs, tops, strict=True)
    ]
