"""How text refers to models and jobs: `name`, `name/3`, `name@champion`, and 32 hex digits for a job.

Checks only the form; whether the model or job exists, the registry and the ledger know. Error messages are printable on any
terminal, whatever was given.
"""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, TypeAlias

from msgspec import Meta

from forebay.contract.errors import InvalidInput

MAX_VERSION = 2**31 - 1  # a 32-bit SQL integer

_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_REFERENCE = re.compile(r"(?P<name>[^/@]+)(?:/(?P<version>[1-9][0-9]{0,9})|@(?P<alias>[^/@]+))?")
_JOB_ID = re.compile(r"[0-9a-f]{32}")

ModelName: TypeAlias = Annotated[str, Meta(pattern=rf"^(?:{_NAME.pattern})\Z")]
JobId: TypeAlias = Annotated[str, Meta(pattern=rf"^{_JOB_ID.pattern}\Z")]

_NAME_RULE = "1 to 100 of A-Z a-z 0-9 . _ -, starting with a letter or digit, without '..'"
_ALIAS_RULE = "1 to 64 of A-Z a-z 0-9 _ -, starting with a letter"
_FORMS = f"write 'name', 'name/3' (versions count from 1) or 'name@alias'; a name is {_NAME_RULE}"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A reference to a version, an alias or, with neither, the newest version of a model."""

    name: str
    version: int | None = None
    alias: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.alias is not None:
            check_alias(self.alias)
        if self.version is not None and not _is_version(self.version):
            raise InvalidInput(f"{shown(self.version)} is not a version; versions are integers from 1 to {MAX_VERSION}")
        if self.version is not None and self.alias is not None:
            raise InvalidInput(f"a reference to {self.name!r} has a version or an alias, not both")

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """The reference in `text`; InvalidInput, with the valid forms, for anything else."""
        if not isinstance(text, str):
            raise _invalid_reference(text)
        return _parsed(text)

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}/{self.version}"
        return self.name if self.alias is None else f"{self.name}@{self.alias}"


@lru_cache(maxsize=1024)
def _parsed(text: str) -> ModelRef:
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise _invalid_reference(text)
    name, version, alias = match.group("name", "version", "alias")
    try:
        return ModelRef(name, None if version is None else int(version), alias)
    except InvalidInput as error:
        raise _invalid_reference(text) from error


def versioned(name: str, version: int) -> str:
    """`name/3`, or only `name` for version 0, which a training job is yet to make."""
    return f"{name}/{version}" if version else name


def check_name(text: str) -> str:
    """`text` itself if it is a valid model name; else InvalidInput."""
    return _check(_NAME, text, f"model name; a name is {_NAME_RULE}")


def check_alias(text: str) -> str:
    """`text` itself if it is a valid alias; else InvalidInput."""
    return _check(_ALIAS, text, f"alias; an alias is {_ALIAS_RULE}")


def check_job_id(text: str) -> str:
    """`text` itself if it has the form of a job id; else InvalidInput. Whether the job exists is not checked."""
    return _check(_JOB_ID, text, "job id; an id is 32 digits of 0-9 a-f, as `job.id` and `forebay jobs list` give it")


def shown(value: object, limit: int = 80) -> str:
    """`value` as one line of printable ASCII, at most `limit` characters, for error messages; never raises."""
    brief = reprlib.Repr()
    brief.maxlist = brief.maxtuple = brief.maxdict = 12
    brief.maxstring = brief.maxother = brief.maxlong = limit
    try:
        text = " ".join(brief.repr(value).split())
    except ValueError:  # Python refuses to write out integers beyond 4300 digits
        text = f"<{type(value).__name__}>"
    text = text.encode("ascii", "backslashreplace").decode("ascii")
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def described(value: object) -> str:
    """`value` for error messages: dtype and shape of an array or tensor, else its type and the value."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and isinstance(shape, tuple):
        return f"{shown(str(dtype))[1:-1].removeprefix('torch.')} of shape {list(shape)}"
    return "None" if value is None else f"{type(value).__name__} {shown(value)}"


def _check(pattern: re.Pattern[str], text: str, rule: str) -> str:
    if _matched(pattern, text) is None:
        raise InvalidInput(f"{shown(text)} is not a valid {rule}")
    return text


def _matched(pattern: re.Pattern[str], text: object) -> re.Match[str] | None:
    return pattern.fullmatch(text) if isinstance(text, str) else None


def _is_version(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_VERSION


def _invalid_reference(text: object) -> InvalidInput:
    return InvalidInput(f"{shown(text)} is not a valid model reference; {_FORMS}, an alias {_ALIAS_RULE}")


def plain_text(text: str, limit: int | None = None) -> str:
    """`text` without what a database refuses: NUL and lone surrogates are escaped. Cut to `limit` characters."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")[:limit]
