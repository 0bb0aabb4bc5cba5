"""JSON schemas enforced while decoding, by llguidance. The only place that imports it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from forebay.contract.errors import InvalidInput, MissingExtra

# One way to write a value, as Python's json does: white space without end would follow the schema too.
_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_SCHEMAS = 64  # compiled ones that are kept


class Grammars:
    """Makes matchers for one model's tokens."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: list[int]) -> None:
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, ends
        self._known: Any = None
        self._compiled = lru_cache(_SCHEMAS)(self._compile)

    def matcher(self, schema: dict[str, Any]) -> Matcher:
        """A matcher at its beginning; InvalidInput for a schema that cannot be followed, and without the library."""
        return Matcher(self._compiled(msgspec.json.encode(schema, order=None)).deep_copy(), self._vocabulary)

    def _compile(self, schema: bytes) -> Any:
        try:
            from llguidance import LLMatcher
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise InvalidInput(str(MissingExtra("response_format needs llguidance", "generation"))) from error
        if self._known is None:
            try:
                self._known = from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._ends)
            except ValueError as error:
                raise InvalidInput(f"response_format: not with this model's tokenizer: {error}") from error
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema.decode(), defaults=_WRITTEN)
            matcher = LLMatcher(self._known, grammar, log_level=0)
        except ValueError as error:
            raise InvalidInput(f"response_format: this schema cannot be followed: {error}") from error
        if matcher.is_error():
            raise InvalidInput(f"response_format: this schema cannot be followed: {matcher.get_error()}")
        return matcher


class Matcher:
    """How far one text has followed its schema."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((vocabulary + 31) // 32, np.int32)
        self._vocabulary = vocabulary

    def copy(self) -> Matcher:
        return Matcher(self._matcher.deep_copy(), self._vocabulary)

    def allowed(self) -> Tensor:
        """Which tokens may come next, `(vocabulary,)` of bool."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        found = np.unpackbits(self._bits.view(np.uint8), count=self._vocabulary, bitorder="little")
        return torch.from_numpy(found.view(bool))

    def take(self, token: int) -> bool:
        """Note the token that was chosen; whether the text is complete with it. ValueError when it was not allowed."""
        if not self._matcher.consume_token(token):
            raise ValueError(f"token {token} does not follow the schema: {self._matcher.get_error()}")
        return bool(self._matcher.is_stopped())
