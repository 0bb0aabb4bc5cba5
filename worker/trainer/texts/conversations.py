"""A conversation as its model's chat template writes it, and as tokens. What somebody says stays text, also where it spells a
special token: else who is answered could speak as the system, or end a turn that is not theirs.
"""  # fmt: skip

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from forebay.contract.errors import InvalidInput
from forebay.contract.generation import Message

_KEY = "".join(str(byte % 10) for byte in os.urandom(24))  # nobody can have said it
_listed: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()  # by tokenizer
_MARK = re.compile(f"~{_KEY}-([0-9]+)~")  # stands for a special token that somebody spelled


def rendered(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """What the template makes of it, for `text_tokens`. Raises what the template does, which may be anything."""
    special = _special(tokenizer)
    spelled = _any_of(special)

    def marked(text: str) -> str:
        return spelled.sub(lambda found: f"~{_KEY}-{special.index(found[0])}~", text)

    turns = [{"role": message.role, "content": marked(message.content)} for message in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt))


def text_tokens(tokenizer: Any, text: str) -> list[int]:
    """The tokens of (a part of) what `rendered` gave. InvalidInput where this tokenizer cannot tell what is text."""
    if not _MARK.search(text):
        plain: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return plain
    without = _MARK.sub("", text)
    if _by_parts(tokenizer, without) != tokenizer.encode(without, add_special_tokens=False):
        special = _special(tokenizer)
        found = ", ".join(sorted({special[int(number)] for number in _MARK.findall(text)}))
        raise InvalidInput(
            f"messages: they hold {found}, which this model's tokenizer cannot take as text; leave it out"
        )
    return _by_parts(tokenizer, text)


def _by_parts(tokenizer: Any, text: str) -> list[int]:
    """The template's own special tokens, and all between them as text."""
    special = _special(tokenizer)
    made: list[int] = []
    for i, part in enumerate(re.split(f"({_any_of(special).pattern})", text)):
        if i % 2:
            made.append(tokenizer.convert_tokens_to_ids(part))
        elif part:
            spelled = _MARK.sub(lambda found: special[int(found[1])], part)
            made += tokenizer.encode(spelled, add_special_tokens=False, split_special_tokens=True)
    return made


def _special(tokenizer: Any) -> list[str]:
    """The texts that the tokenizer takes for special tokens, longer ones first. They are listed once: a list takes as long as
    a short chat.
    """  # fmt: skip
    known = _listed.get(tokenizer)
    if known is None:
        known = _listed[tokenizer] = _list_special(tokenizer)
    return known


def _list_special(tokenizer: Any) -> list[str]:
    added = (str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*added, *tokenizer.all_special_tokens}, key=lambda text: (-len(text), text))


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")
