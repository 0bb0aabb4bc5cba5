"""What a language model is fine-tuned and evaluated on: rows with `messages`, or with `prompt` and `completion`.

Client, trainer and worker read rows by the same function. Knows no tokenizer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from msgspec import Struct

from forebay.contract.errors import InvalidInput
from forebay.contract.generation import Message, parse_generation
from forebay.contract.references import shown

MESSAGES, PROMPT, COMPLETION = "messages", "prompt", "completion"
ASSISTANT = "assistant"


class Example(Struct, frozen=True):
    """A prompt and what is to follow it; or a conversation, whose last message is an assistant's."""

    prompt: str = ""
    completion: str = ""
    messages: tuple[Message, ...] = ()

    @property
    def asked(self) -> str | tuple[Message, ...]:
        """What comes before the answer."""
        return self.messages[:-1] or self.prompt

    @property
    def answer(self) -> str:
        return self.messages[-1].content if self.messages else self.completion


def example_columns(there: Collection[str]) -> tuple[str, ...]:
    """The columns that rows are read from; InvalidInput when they are not among those that are there."""
    for names in ((MESSAGES,), (PROMPT, COMPLETION)):
        if set(names) <= set(there):
            return names
    listed = ", ".join(map(shown, there))
    raise InvalidInput(f"the data set has neither messages, nor prompt and completion; it has {listed:.500}")


def parse_example(row: Mapping[str, Any]) -> Example:
    """The example of a row with the columns that `example_columns` gave; InvalidInput says what is wrong with it."""
    if MESSAGES not in row:
        for name in (PROMPT, COMPLETION):
            if not isinstance(row[name], str) or not row[name]:
                raise InvalidInput(f"{name}: expected a text that is not empty, got {shown(row[name])}")
        return Example(row[PROMPT], row[COMPLETION])
    messages = parse_generation({MESSAGES: _without_nulls(row[MESSAGES])}).messages or ()
    if messages[-1].role != ASSISTANT or len(messages) == 1:
        raise InvalidInput(
            f"messages: the last one is what is learned: an assistant's, behind others; got roles "
            f"{shown([message.role for message in messages])}"
        )
    empty = next((i for i, message in enumerate(messages) if message.role == ASSISTANT and not message.content), None)
    if empty is not None:
        raise InvalidInput(f"messages[{empty}]: an assistant's message is what is learned; this one is empty")
    return Example(messages=messages)


def _without_nulls(messages: Any) -> Any:
    """Parquet has each field that some message has in every one."""
    if messages is None:
        raise InvalidInput("messages: missing in this row")
    if not isinstance(messages, list):
        return messages
    return [
        {name: value for name, value in message.items() if value is not None}
        if isinstance(message, Mapping)
        else message
        for message in messages
    ]
