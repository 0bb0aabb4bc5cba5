"""A request to /v1/chat/completions or /v1/completions as a job's rows, and the job's result in OpenAI's words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from forebay.contract.errors import InvalidInput
from forebay.contract.generation import INPUTS, OUTPUTS, GenerationRequest, parse_generation
from forebay.contract.model import ModelVersion

MAX_PROMPTS = 2048
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
_NAMED = re.compile(r"'?([A-Za-z_][\w.\[\]]*)'?: ")  # the field that an error of parse_generation begins with


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream tells besides the text. Obfuscation pads chunks against eavesdroppers; there is none."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Envelope(Struct, frozen=True):
    """The fields of a request that say nothing of the text. Those from `user` on change nothing here."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: Metadata | None = None
    user: str | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class MadeChoice(Struct, frozen=True):
    """A text that a row gave."""

    text: str
    finish_reason: str
    logprobs: list[dict[str, Any]] | None = None


class Tokens(Struct, frozen=True):
    """Tokens read and generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Made(Struct, frozen=True):
    """What a row gave, see contract.generation.completion."""

    choices: list[MadeChoice]
    usage: Tokens | None = None


def row_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """What of a request's body says what to generate, as parse_generation takes it."""
    return {name: value for name, value in body.items() if name not in Envelope.__struct_fields__}


def answer_row(url: str, model: str, result: Any, id: str) -> dict[str, Any]:
    """The body of a response to a request of one row, by the route that it names."""
    chat = url.endswith("/chat/completions")
    return TextRequest(chat, Envelope(model), [{}], 1).answer(model, result if chat else [result], id)


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A request for text: `rows` as parse_generation takes them, one for a conversation and one for each prompt."""

    chat: bool
    about: Envelope
    rows: Sequence[Mapping[str, Any]]
    choices: int  # of each row

    @classmethod
    def read(cls, body: Mapping[str, Any], chat: bool) -> TextRequest:
        """From a body of JSON; InvalidInput names the field that is missing, unknown, not supported or not valid."""
        try:
            about = msgspec.convert({name: body[name] for name in Envelope.__struct_fields__ if name in body}, Envelope)
        except msgspec.ValidationError as error:
            raise InvalidInput(str(error)) from error
        if about.stream_options is not None and not about.stream:
            raise InvalidInput("stream_options is only for stream=true - at `$.stream_options`")
        rest = {name: value for name, value in row_of(body).items() if value is not None}
        needed, other = ("messages", "prompt") if chat else ("prompt", "messages")
        if needed not in rest:
            raise InvalidInput(f"{needed} is missing - at `$.{needed}`")
        if other in rest:
            raise InvalidInput(f"this route takes {needed}, not {other} - at `$.{other}`")
        rows = [rest] if chat else [rest | {"prompt": prompt} for prompt in _prompts(rest["prompt"])]
        return cls(chat, about, rows, max(_parsed(row).sampling.n for row in rows))

    @property
    def model(self) -> str:
        return self.about.model

    def inputs(self, version: ModelVersion) -> Any:
        """The job's input for this version: the row, or for completions a batch of rows; InvalidInput when it makes no text."""
        check_generates(version)
        return self.rows[0] if self.chat else list(self.rows)

    def answer(self, ref: str, result: Any, job_id: str) -> dict[str, Any]:
        """The body of the response, of the job's result."""
        made = self.made(result)
        kind = "chat.completion" if self.chat else "text_completion"
        choices = [self.choice(i, one) for i, one in enumerate(choices_of(made))]
        return self.head(ref, job_id) | {"object": kind, "choices": choices, "usage": total_usage(made)}

    def head(self, ref: str, job_id: str) -> dict[str, Any]:
        """What stands in an answer and in every chunk of a stream. A job's id begins with the milliseconds of its making."""
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{job_id}", "created": int(job_id[:12], 16) // 1000, "model": ref}

    def made(self, result: Any) -> list[Made]:
        """What each row gave; InvalidInput when that is no text."""
        try:
            made = [_made(row) for row in ([result] if self.chat else _unjoined(result, len(self.rows)))]
            counts = [len(row.choices) for row in made]
            if counts != [self.choices] * len(self.rows):
                raise ValueError(f"{counts} choices for {len(self.rows)} prompts and n={self.choices}")
        except (ValueError, TypeError, IndexError) as error:  # msgspec's are ValueErrors
            raise InvalidInput(f"model {self.model} made no text: {error} - at `$.model`") from error
        return made

    def choice(self, index: int, made: MadeChoice) -> dict[str, Any]:
        """A choice as the answer has it."""
        message = {"role": "assistant", "content": made.text, "refusal": None}
        text = {"message": message} if self.chat else {"text": made.text}
        return {"index": index, **text, "logprobs": self.logprobs(made), "finish_reason": made.finish_reason}

    def logprobs(self, made: MadeChoice) -> dict[str, Any] | None:
        """The tokens' probabilities in the form of the route; None where they were not asked for."""
        tokens = made.logprobs
        if tokens is None:
            return None
        if self.chat:
            return {"content": [{"top_logprobs": []} | token for token in tokens], "refusal": None}
        # Of pieces of characters that look alike, the likeliest stays.
        tops = [{top["token"]: top["logprob"] for top in token.get("top_logprobs", [])[::-1]} for token in tokens]
        return {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": tops if any(tops) else None,
            "text_offset": list(_offsets(tokens)),
        }


def check_generates(version: ModelVersion) -> None:
    """InvalidInput for a version that does not take requests for text."""
    given = version.signature.inputs_json(), version.signature.outputs_json()
    if given != (INPUTS, OUTPUTS):
        raise InvalidInput(f"model {version.ref} (runtime {version.runtime}) does not generate text - at `$.model`")


def choices_of(made: Sequence[Made]) -> list[MadeChoice]:
    """All rows' choices, in order."""
    return [choice for row in made for choice in row.choices]


def total_usage(made: Sequence[Made]) -> dict[str, int] | None:
    """The tokens of all rows; None where those of one were not told: 0 would be a lie."""
    told = [row.usage for row in made if row.usage is not None]
    if len(told) < len(made):
        return None
    return {name: sum(getattr(usage, name) for usage in told) for name in Tokens.__struct_fields__}


def _parsed(row: Mapping[str, Any]) -> GenerationRequest:
    try:
        return parse_generation(row)
    except InvalidInput as error:
        named = _NAMED.match(str(error))
        raise InvalidInput(f"{error} - at `$.{named[1]}`" if named else str(error)) from error


def _prompts(value: Any) -> list[Any]:
    """The prompts of a request for completions: a text, or the ids of its tokens, or a list of these."""
    if not isinstance(value, list) or (value and type(value[0]) is int):
        return [value]
    if not 1 <= len(value) <= MAX_PROMPTS:
        raise InvalidInput(f"prompt has {len(value)} texts; give 1 to {MAX_PROMPTS} - at `$.prompt`")
    return value


def _made(row: Any) -> Made:
    if isinstance(row, dict) and "choices" in row:
        return msgspec.convert(row, Made)
    return Made([msgspec.convert(row, MadeChoice)], row.get("usage") and msgspec.convert(row["usage"], Tokens))


def _unjoined(result: Any, count: int) -> list[Any]:
    """The rows of a batched result: dicts of the same keys come as one dict of lists."""
    if not isinstance(result, dict):
        return list(result)
    columns = {name: _unjoined(value, count) for name, value in result.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def _offsets(tokens: Sequence[Mapping[str, Any]]) -> Iterator[int]:
    """Where each token begins in the text, in characters; a token may be part of one."""
    before = b""
    for token in tokens:
        yield len(before.decode("utf-8", "ignore"))
        before += bytes(token["bytes"])
