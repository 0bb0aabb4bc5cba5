"""What values settings may have: how text, or a value from TOML, becomes a setting's value, and how that becomes text again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias
from urllib.parse import urlsplit

from forebay.contract.errors import InvalidInput
from forebay.contract.queues import QueueSpec, parse_bytes
from forebay.contract.references import shown

_UNITS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of setting: how text, or a value from TOML, becomes its value, how that becomes text again, and what it may be."""

    parse: Callable[[Any], Any]
    dump: Callable[[Any], str] = str
    expected: str = "text"


def mask_password(url: str) -> str:
    """The URL with its password replaced by ***, even if the URL is malformed or the password needed escaping."""
    url = re.sub(r"://([^:@/]*):.*@", r"://\1:***@", url, flags=re.DOTALL)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", url)


def seconds(value: Any) -> float:
    """`30`, `"45s"`, `"15m"`, `"12h"` or `"30d"` in seconds; InvalidInput otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(ms|s|m|h|d|)\s*", str(value), flags=re.ASCII)
    duration = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < duration < math.inf:
        raise InvalidInput(f"{value!r} is not a valid duration; write seconds, or 45s, 15m, 12h, 30d")
    return duration


def _is_url(text: str) -> bool:
    try:
        port = urlsplit(text).port
    except ValueError:  # its message would show the password
        return False
    return port is None or port > 0


def parse_broker(value: Any) -> str:
    text = str(value)
    if not text.startswith(("redis://", "rediss://")) or not _is_url(text):
        raise InvalidInput(f"{mask_password(text)!r} is not a Redis address; write redis://host:6379/0 or rediss://…")
    return text


def parse_database(value: Any) -> str:
    text = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", str(value))
    if not text.startswith(("sqlite:///", "postgresql+psycopg://")) or not _is_url(text):
        raise InvalidInput(
            f"{mask_password(str(value))!r} is not a supported database; "
            "write sqlite:///path/ledger.db or postgresql://user@host/name"
        )
    return text


def parse_blobs(value: Any) -> str:
    text = str(value)
    return text if "://" in text else Path(text).expanduser().absolute().as_uri()


def parse_device(value: Any) -> str:
    if not re.fullmatch(r"cpu|cuda:\d+", str(value)):
        raise InvalidInput(f"{value!r} is not a device; write cpu or cuda:0")
    return str(value)


def _names(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else list(value)
    if not all(isinstance(part, str) for part in parts):
        raise InvalidInput(f"{value!r} is not a list of names")
    return tuple(part.strip() for part in parts if part.strip())


def _places(value: Any) -> tuple[str, ...]:
    return tuple(name if "://" in name else str(Path(name).expanduser().absolute()) for name in _names(value))


def _queues(value: Any) -> Mapping[str, QueueSpec]:
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping) or not value:
        raise InvalidInput(
            f"{shown(value)} does not declare queues; "
            "write tables such as [queues.gpu-large] with gpu = 1, gpu_memory = '80GiB'"
        )
    return {name: QueueSpec.parse(name, spec) for name, spec in value.items()}


def between(low: int, high: int) -> Kind:
    def parse(value: Any) -> int:
        number = int(str(value))
        if not low <= number <= high:
            raise InvalidInput(f"{number} is not between {low} and {high}")
        return number

    return Kind(parse, expected=f"a whole number from {low} to {high}")


def one_of(*words: str) -> Kind:
    def parse(value: Any) -> str:
        if str(value).lower() not in words:
            raise InvalidInput(f"{value!r} is not one of {', '.join(words)}")
        return str(value).lower()

    return Kind(parse, expected=", ".join(f"`{word}`" for word in words))


Text: TypeAlias = Annotated[str, Kind(str)]
Folder: TypeAlias = Annotated[Path, Kind(Path, expected="a path")]
Broker: TypeAlias = Annotated[str, Kind(parse_broker, expected="`redis://host:6379/0` or `rediss://…`")]
Database: TypeAlias = Annotated[
    str, Kind(parse_database, expected="`sqlite:///path/ledger.db` or `postgresql://user@host/name`")
]
BlobStore: TypeAlias = Annotated[str, Kind(parse_blobs, expected="a path or a URL such as `s3://bucket/blobs`")]
Device: TypeAlias = Annotated[str, Kind(parse_device, expected="`cpu`, or `cuda:` and a number")]
Seconds: TypeAlias = Annotated[float, Kind(seconds, expected="a duration: `30`, `45s`, `15m`, `12h`, `30d`")]
Bytes: TypeAlias = Annotated[int, Kind(parse_bytes, expected="a size: `65536`, `8MiB`, `2GB`")]
Port: TypeAlias = Annotated[int, between(0, 65535)]
# An empty variable counts as not given, so no names at all are written as ",".
Names: TypeAlias = Annotated[
    tuple[str, ...], Kind(_names, lambda names: ",".join(names) or ",", "names separated by commas; `,` for none")
]
Places: TypeAlias = Annotated[
    tuple[str, ...],
    Kind(_places, lambda places: ",".join(places) or ",", "paths and URLs separated by commas; `,` for none"),
]
Queues: TypeAlias = Annotated[
    Mapping[str, QueueSpec],
    Kind(
        _queues,
        lambda queues: json.dumps({name: queue.as_dict() for name, queue in queues.items()}),
        "tables `[queues.NAME]`; JSON in the variable",
    ),
]
