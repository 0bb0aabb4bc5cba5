"""What requests of every kind share: records as bytes and back, and what makes two requests the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import msgspec
from msgspec.structs import replace

from forebay.contract.errors import InvalidInput

T = TypeVar("T")


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a job asks for, as its payload holds it."""

    ESTIMATES: ClassVar[Mapping[str, Any]] = {}
    """Fields that are guessed, not asked for, with the values that stand for them in a fingerprint."""

    def fingerprint(self, model: str) -> str:
        """Equal for requests that ask the same of the same model."""
        asked = msgspec.json.encode([model, replace(self, **self.ESTIMATES)], order="sorted")
        return hashlib.sha256(asked).hexdigest()

    def summary(self) -> dict[str, Any]:
        """The request as plain data, with the number of its files and the first one in the place of them all."""
        asked: dict[str, Any] = msgspec.to_builtins(self)
        files = getattr(self, "files", None)
        if files is None:
            return asked
        return asked | {"files": {"count": len(files), "first": files[0].path if files else None}}


def encode(record: Any) -> bytes:
    """A record, or several, as JSON. Numbers that are not finite become null: JSON has none."""
    return msgspec.json.encode(record)


def decode(data: bytes | str, kind: type[T]) -> T:
    """The record again; InvalidInput when `data` is not one."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, InvalidInput, UnicodeError) as error:
        raise InvalidInput(f"not a valid {getattr(kind, '__name__', kind)}: {error}") from error
