"""Text encoders as ONNX graphs: the folder has a tokenizer.json beside the graph, which says how long texts may be and how they
are padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput, MissingExtra, ModelLoadFailed
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Row
from forebay.worker.runtimes.folders import too_long
from forebay.worker.runtimes.onnx_session import Session

TOKENIZER = "tokenizer.json"
_CHARACTERS_PER_TOKEN = 4
_TOKENS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class Prepared(NamedTuple):
    """Tokens of those texts that can be run, the errors of the others by their number, and how many texts there are."""

    tokens: dict[str, NDArray[np.int64]]
    errors: dict[int, InvalidInput]
    rows: int


class OnnxText:
    """One vector, or whatever the graph's first output holds, for each text; `options` may have a `prompt` to put before each,
    and `truncate`, to cut those that are too long.
    """  # fmt: skip

    def __init__(self, session: Session, tokenizer: Path, spec: ModelVersion) -> None:
        self._session = session
        self._takes = [value.name for value in session.inputs]
        inputs = spec.signature.inputs or ()
        if not set(self._takes) <= set(_TOKENS) or [field.dtype for field in inputs] != ["str"]:
            raise ModelLoadFailed(
                f"{spec.ref}: with a {TOKENIZER} the graph takes {', '.join(_TOKENS)}, and the version one text; they take "
                f"{', '.join(self._takes)} and {', '.join(field.name for field in inputs)}"
            )
        self._input = inputs[0].name
        self._prompt, self._truncate = str(spec.options.get("prompt", "")), bool(spec.options.get("truncate"))
        self._tokenizer = _loaded(tokenizer, spec)
        self._longest: int = (self._tokenizer.truncation or {}).get("max_length", 512)

    def predict(self, rows: Sequence[Row]) -> list[Row]:
        return self.run(self.prepare(rows))

    def prepare(self, rows: Sequence[Row]) -> Prepared:
        """The texts' tokens, padded to the longest."""
        encoded, errors = self._encoded(rows), dict[int, InvalidInput]()
        if not self._truncate:
            errors = {i: self._too_long(one) for i, one in enumerate(encoded) if one.overflowing}
        if errors:  # the others are padded anew
            encoded = self._encoded([row for i, row in enumerate(rows) if i not in errors])
        tokens = {name: np.array([getattr(one, _TOKENS[name]) for one in encoded], np.int64) for name in self._takes}
        return Prepared(tokens if encoded else {}, errors, len(rows))

    def run(self, prepared: Prepared) -> list[Row]:
        """The rows; for a text that was refused, its error."""
        tokens, errors, count = prepared
        made = iter(self._session.run(None, tokens)[0] if tokens else ())
        return [errors[i] if i in errors else next(made) for i in range(count)]

    def cost(self, row: Row) -> int:
        """About how many tokens the text has, special ones included: rows of like cost pad little."""
        return min(self._longest, 2 + len(row[self._input]) // _CHARACTERS_PER_TOKEN)

    def count_tokens(self, rows: Sequence[Row]) -> int:
        """How many tokens it reads of these texts, special ones and the prompt included, what it cuts off not."""
        return sum(sum(one.attention_mask) for one in self._encoded(rows))

    def _encoded(self, rows: Sequence[Row]) -> list[Any]:
        encoded: list[Any] = self._tokenizer.encode_batch([self._prompt + row[self._input] for row in rows])
        return encoded

    def _too_long(self, encoded: Any) -> InvalidInput:
        own = sum(part.special_tokens_mask.count(0) for part in (encoded, *encoded.overflowing))
        return too_long(sum(encoded.special_tokens_mask) + own, self._longest)


def write_tokenizer(tokenizer: Any, longest: int | None, path: Path) -> None:
    """Writes a fast tokenizer of transformers as `OnnxText` reads it."""
    backend = tokenizer.backend_tokenizer
    backend.enable_padding(pad_id=tokenizer.pad_token_id or 0, pad_token=tokenizer.pad_token or "[PAD]")
    if longest is not None:
        backend.enable_truncation(longest)
    backend.save(str(path))


def _loaded(path: Path, spec: ModelVersion) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra(f"{spec.ref} needs tokenizers", "transformers") from error
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain exceptions
        raise ModelLoadFailed(f"{spec.ref}: its {TOKENIZER} cannot be read: {error}") from error
