"""From generated tokens to text: byte by byte, so that text may be told, and searched for where to stop, while it grows."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from forebay.contract.errors import ModelLoadFailed

_SPACE = "\u2581"  # how SentencePiece writes a space
_BYTE = re.compile(r"<0x([0-9A-F]{2})>\Z")
_PROBE = "A forebay holds 1,234 m³ of water;\n  turbines wait below. «Œuvre» 水"


class TokenBytes:
    """The bytes that each token stands for; none for special tokens. ModelLoadFailed for a tokenizer that has no such bytes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}
        self._added = tokenizer.added_tokens_decoder
        self._special = frozenset(tokenizer.all_special_ids)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
        self._by_bytes = "ByteLevel" in json.dumps(decoder)
        ids = tokenizer.encode(_PROBE, add_special_tokens=False)
        told = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if b"".join(map(self.of, ids)).decode("utf-8", "replace").strip() != told.strip():
            raise ModelLoadFailed(
                "its tokenizer is neither a byte-level nor a SentencePiece one, so its text cannot be told"
            )

    def of(self, token: int) -> bytes:
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._find(token)
        return found

    def _find(self, token: int) -> bytes:
        added = self._added.get(token)
        if token in self._special or (added is not None and added.special):
            return b""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # the model's vocabulary may be padded
            return b""
        if added is not None:
            return str(piece).encode()
        if self._by_bytes:
            return bytes(self._letters[letter] for letter in piece)
        byte = _BYTE.match(piece)
        return bytes.fromhex(byte[1]) if byte else str(piece).replace(_SPACE, " ").encode()

    @cached_property
    def _letters(self) -> dict[str, int]:
        """The letters by which byte-level tokenizers write bytes."""
        shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        hidden = [byte for byte in range(256) if byte not in shown]
        return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


class Text:
    """The text of one growing list of tokens, and whether one of `stops` has ended it."""

    def __init__(self, token_bytes: TokenBytes, stops: Sequence[str]) -> None:
        self._bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = stops
        self._held = max(map(len, stops), default=1) - 1  # characters that may be the beginning of a stop
        self._read = 0
        self._told = 0
        self.text = ""
        self.stopped = False

    def read(self, tokens: Sequence[int], final: bool = False) -> None:
        """Add those of the tokens that it has not read yet; `final`: there will be no more."""
        if self.stopped:  # what is left of a character behind the stop is no part of the text
            return
        data = b"".join(map(self._bytes.of, tokens[self._read :]))
        self._read = len(tokens)
        before = len(self.text)
        self.text += self._decoder.decode(data, final)
        found = [at for stop in self._stops if (at := self.text.find(stop, max(0, before - self._held))) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def untold(self, final: bool = False) -> tuple[int, str]:
        """What can be told since this was last called, and where in the text it begins: not what may be part of a stop."""
        start, end = self._told, len(self.text) - (0 if final or self.stopped else self._held)
        self._told = max(start, end)
        return start, self.text[start : self._told]
