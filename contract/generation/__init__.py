"""What one row asks of a language model, in the forms that OpenAI's API made common, and what it gets.

Both runtimes that generate text read rows by `parse_generation`; the HTTP API and batches check rows with it before they run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypeAlias, TypedDict

import msgspec
from msgspec import Meta, Struct

from forebay.contract.errors import InvalidInput
from forebay.contract.references import described, shown
from forebay.contract.requests.fields import check, fields_of

# The signature of a version that generates text, unless it declares one.
FIELD = "request"
INPUTS = {FIELD: {"dtype": "json"}}
OUTPUTS = {"completion": {"dtype": "json"}}

MAX_STOPS = 16
_STOPS = f"a text, or up to {MAX_STOPS} of them, none of them empty"


class Message(Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


Prompt: TypeAlias = str | tuple[int, ...] | tuple[Message, ...]


class Sampling(Struct, frozen=True):
    """How to generate. None: as the model's own defaults, or the endpoint's, have it."""

    max_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=2**31 - 1)] | None, Meta(description="tokens to generate, at most")
    ] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None, Meta(description="0: always the likeliest token")
    ] = None
    top_p: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="the likeliest tokens that together have this share"),
    ] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None,
        Meta(description="the likeliest tokens, so many; 0 or -1: all"),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None, Meta(description="the same seed, the same text")
    ] = None
    stop: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...],
        Meta(max_length=MAX_STOPS, title=_STOPS, description="ends before one of these texts"),
    ] = ()
    n: Annotated[int, Meta(ge=1, le=128, description="how many texts")] = 1
    logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=20)] | None,
        Meta(description="tells each token's logarithm of its probability, and of so many of the likeliest"),
    ] = None
    presence_penalty: Annotated[
        float, Meta(ge=-2, le=2, description="subtracted from the logit of a token that was generated before")
    ] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2, description="the same, for each time it was generated")] = 0.0
    schema: Annotated[dict[str, Any] | None, Meta(description="the JSON schema that the text has to follow")] = None


FIELDS = {
    "prompt", "messages", "max_completion_tokens", "top_logprobs", "response_format", *Sampling.__struct_fields__
} - {"schema"}  # fmt: skip


class GenerationRequest(Struct, frozen=True):
    """What one row asks: a text or the ids of its tokens to go on from, or a conversation to answer."""

    prompt: Prompt
    sampling: Sampling

    @property
    def messages(self) -> tuple[Message, ...] | None:
        """The conversation, where it is one."""
        first = self.prompt[0] if self.prompt else None
        return self.prompt if isinstance(first, Message) else None  # type: ignore[return-value]


class Usage(TypedDict):
    """Tokens; those of the prompt count once for all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenLogprob(TypedDict):
    """A generated token, as OpenAI's chat completions tell it: `bytes` are its UTF-8, which may be part of a character."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: NotRequired[list[TokenLogprob]]


class Choice(TypedDict):
    """One text. It ended by itself or before a `stop` ("stop"), or at max_tokens or the end of the context ("length")."""

    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: NotRequired[list[TokenLogprob]]


def completion(choices: Sequence[Choice], prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """A row's result: the one choice with its usage, or several under `choices`."""
    used = usage(prompt_tokens, completion_tokens)
    return {**choices[0], "usage": used} if len(choices) == 1 else {"choices": list(choices), "usage": used}


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    total = prompt_tokens + completion_tokens
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, total_tokens=total)


def tokens_told(results: Sequence[Any]) -> tuple[int, int]:
    """The tokens of prompts and of texts, of those among the results of rows that tell them."""
    told = [result["usage"] for result in results if isinstance(result, Mapping) and "usage" in result]
    return sum(usage["prompt_tokens"] for usage in told), sum(usage["completion_tokens"] for usage in told)


def parse_generation(value: Any) -> GenerationRequest:
    """What a row asks, from a prompt, a list of messages or of token ids, or the body of an OpenAI request.

    A body has `messages` or `prompt`, and fields of Sampling, which may be None: `max_completion_tokens` is `max_tokens`;
    `response_format` gives the schema; and with messages `logprobs` is true or false, with the number as `top_logprobs`.
    InvalidInput names the field that is unknown or not valid.
    """
    given = {name: item for name, item in _body(value).items() if item is not None}
    chat = "messages" in given
    if chat == ("prompt" in given):
        raise InvalidInput(f"give either prompt or messages, got {described(value)}")
    names = [name for name in fields_of(Sampling) if name != "schema"]
    names += ["max_completion_tokens", "response_format", *(["messages", "top_logprobs"] if chat else ["prompt"])]
    unknown = next((name for name in given if name not in names), None)
    if unknown is not None:
        raise InvalidInput(f"{shown(unknown)}: this field is not supported; there are {', '.join(sorted(names))}")
    prompt = _messages(given.pop("messages")) if chat else _prompt(given.pop("prompt"))
    return GenerationRequest(prompt, _sampling(given, chat))


def _body(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        return {"messages": value}
    if isinstance(value, str | list | tuple):
        return {"prompt": value}
    raise InvalidInput(
        f"expected a prompt, a list of messages, or a dict with prompt or messages, got {described(value)}"
    )


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value and all(type(token) is int and token >= 0 for token in value):
        return tuple(value)
    raise InvalidInput(f"prompt: expected one text, or the ids of its tokens, got {shown(value)}")


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise InvalidInput(f"messages: expected a list of at least one message, got {shown(value)}")
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(value))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{where}: expected a dict with role and content, got {described(value)}")
    content = value.get("content")
    if isinstance(content, list | tuple):
        content = "".join(_text(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    given = {name: item for name, item in value.items() if item is not None}  # of a table, which has gaps
    try:
        return check({**given, "content": content}, Message)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error


def _text(part: Any, where: str) -> str:
    if (
        isinstance(part, Mapping)
        and part.keys() == {"type", "text"}
        and part["type"] == "text"
        and isinstance(part["text"], str)
    ):
        return part["text"]
    raise InvalidInput(f"{where}: expected {{'type': 'text', 'text': …}}, got {shown(part)}; only text is read")


def _sampling(given: dict[str, Any], chat: bool) -> Sampling:
    if "max_completion_tokens" in given:
        most = given.pop("max_completion_tokens")
        if given.setdefault("max_tokens", most) != most:
            raise InvalidInput(f"max_completion_tokens: {shown(most)} contradicts max_tokens; give one of them")
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    if "response_format" in given:
        given["schema"] = _schema(given.pop("response_format"))
    if chat:
        given["logprobs"] = _chat_logprobs(given.pop("logprobs", False), given.pop("top_logprobs", None))
    return check(given, Sampling)


def _chat_logprobs(asked: Any, top: Any) -> Any:
    if not isinstance(asked, bool):
        raise InvalidInput(f"logprobs: expected true or false, got {shown(asked)}; top_logprobs is the number")
    if top is not None and (not asked or type(top) is not int or not 0 <= top <= 20):
        raise InvalidInput(f"top_logprobs: expected a whole number from 0 to 20 beside logprobs=true, got {shown(top)}")
    return (top or 0) if asked else None


class _NamedSchema(Struct, forbid_unknown_fields=True):
    schema: dict[str, Any]
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class _ResponseFormat(Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _NamedSchema | None = None


def _schema(value: Any) -> dict[str, Any] | None:
    try:
        asked = msgspec.convert(value, _ResponseFormat)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"response_format: {error}") from error
    if (asked.json_schema is None) == (asked.type == "json_schema"):
        raise InvalidInput("response_format: type 'json_schema' needs json_schema, and no other type takes it")
    if asked.json_schema is not None:
        return asked.json_schema.schema
    return {"type": "object"} if asked.type == "json_object" else None
