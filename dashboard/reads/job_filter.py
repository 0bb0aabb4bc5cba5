"""The filter form of the Jobs page: from query parameters to a filter and back. Knows no ledger and no HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlencode

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind, JobState
from forebay.contract.references import ModelRef, check_job_id, shown
from forebay.storage.jobs.views import JobFilter

FIELDS = ("state", "kind", "model", "queue", "worker", "metadata", "since", "until", "id", "parent")
_ID_PREFIX = re.compile(r"[0-9a-f]{1,32}")
_PAIR_END = re.compile(r",\s*(?=[^,=\s]+=)")  # a comma ends a pair only where another follows: values may hold commas

Choice = TypeVar("Choice", JobState, JobKind)


@dataclass(frozen=True, slots=True)
class JobFilterForm:
    """The non-empty fields as given, and the filter they stand for. An alias in `model` is still to be resolved."""

    fields: Mapping[str, str]
    filter: JobFilter
    model: ModelRef | None = None

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> JobFilterForm:
        """From the query parameters; InvalidInput, naming the field and its value, for one that is not valid."""
        fields = {name: value.strip() for name in FIELDS if (value := given.get(name, "")).strip()}
        ref = ModelRef.parse(fields["model"]) if "model" in fields else None
        filter = JobFilter(
            state=_choice(JobState, "state", fields),
            kind=_choice(JobKind, "kind", fields),
            model=ref.name if ref else None,
            version=ref.version if ref else None,
            queue=fields.get("queue"),
            worker=fields.get("worker"),
            parent_id=check_job_id(fields["parent"]) if "parent" in fields else None,
            id_prefix=_prefix(fields.get("id", "")),
            since=_seconds("since", fields),
            until=_seconds("until", fields),
            metadata=_metadata(fields.get("metadata", "")),
        )
        return cls(fields, filter, ref)

    def query(self, **changes: str | None) -> str:
        """The query string for this form, with fields added, changed or (None) left out; '' or '?…'."""
        fields = {name: value for name, value in {**self.fields, **changes}.items() if value}
        return f"?{urlencode(fields)}" if fields else ""


def _choice(choices: type[Choice], name: str, fields: Mapping[str, str]) -> Choice | None:
    if name not in fields:
        return None
    try:
        return choices(fields[name])
    except ValueError:
        raise InvalidInput(f"{shown(fields[name])} is not a {name}; use one of {', '.join(choices)}") from None


def _prefix(text: str) -> str:
    if text and not _ID_PREFIX.fullmatch(text.lower()):
        raise InvalidInput(f"{shown(text)} is not the start of a job id, which is 32 digits of 0-9 a-f")
    return text.lower()


def _seconds(name: str, fields: Mapping[str, str]) -> float | None:
    """A time as the browser's field sends it, taken as UTC."""
    if name not in fields:
        return None
    try:
        when = datetime.fromisoformat(fields[name])
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InvalidInput(f"{name} {shown(fields[name])} is not a time; write it as 2026-11-22T14:30 (UTC)") from None


def _metadata(text: str) -> dict[str, Any]:
    """`key=value, key=value`, each value parsed as JSON where it is JSON."""
    found: dict[str, Any] = {}
    for part in _PAIR_END.split(text) if text else ():
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise InvalidInput(f"metadata {shown(part)} is not key=value")
        found[key.strip()] = _json_or_text(value.strip())
    return found


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
