"""Examples to tokens, and which of them are learned: those that a served model would have to generate.

A prompt is cut into tokens by itself, as it is when the model serves, so that what is learned begins where generating begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.generation import Message
from forebay.datasets.examples import ASSISTANT, Example
from forebay.worker.trainer.texts.conversations import rendered, text_tokens


class Tokens(NamedTuple):
    """An example as tokens `(length,)` int32, and for each whether it is learned, bool."""

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]


def tokenized(tokenizer: Any, example: Example) -> Tokens:
    """InvalidInput where the tokenizer has no chat template, or one that cannot render the conversation."""
    parts = list(_turns(tokenizer, example.messages) if example.messages else _completion(tokenizer, example))
    ids = np.concatenate([np.array(part, np.int32) for part, _ in parts])
    learned = np.concatenate([np.full(len(part), learns) for part, learns in parts])
    learned[:1] = False  # nothing comes before it
    if not learned.any():
        raise InvalidInput("the tokenizer makes no token of what is to be learned")
    return Tokens(ids, learned)


def _completion(tokenizer: Any, example: Example) -> Iterator[tuple[list[int], bool]]:
    yield tokenizer(example.prompt)["input_ids"], False
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    yield tokenizer(example.completion, add_special_tokens=False)["input_ids"] + end, True


def _turns(tokenizer: Any, messages: tuple[Message, ...]) -> Iterator[tuple[list[int], bool]]:
    """Each answer of the assistant is learned, from where the template would have it generated, with what ends it."""
    done = ""
    for i, message in enumerate(messages):
        if message.role == ASSISTANT and i:
            asked = _rendered(tokenizer, messages[:i], add_generation_prompt=True)
            answered = _rendered(tokenizer, messages[: i + 1], add_generation_prompt=False)
            if not (asked.startswith(done) and answered.startswith(asked)):
                raise InvalidInput(
                    f"messages[{i}]: the chat template renders this conversation otherwise once the answer is there, so that it "
                    "cannot be told what is learned; give each answer a line of its own, or prompt and completion"
                )
            yield text_tokens(tokenizer, asked[len(done) :]), False
            yield text_tokens(tokenizer, answered[len(asked) :]), True
            done = answered


def _rendered(tokenizer: Any, messages: tuple[Message, ...], *, add_generation_prompt: bool) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidInput("messages: the base's tokenizer has no chat template; give prompt and completion")
    try:
        return rendered(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # a template raises what it likes
        raise InvalidInput(f"messages: the base's chat template refuses them: {error}") from error
