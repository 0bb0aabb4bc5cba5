"""What the commands share: the common options, how their texts become values, and how a client is opened."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, MutableMapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import structlog
import typer

from forebay.contract.errors import InvalidInput, JobNotFound
from forebay.contract.references import shown
from forebay.contract.requests.batch import FORMATS
from forebay.contract.setting_kinds import seconds
from forebay.contract.settings import Settings
from forebay.producer.cli.output import print_note

if TYPE_CHECKING:
    from forebay.producer.client import Client
    from forebay.producer.handles.job import Job


def argument(metavar: str, help: str, default: str | bool = False) -> Any:
    """An argument; `default` says what holds without it."""
    return typer.Argument(metavar=metavar, help=help, show_default=default)


def option(metavar: str, help: str, *names: str, default: str | bool = False) -> Any:
    """An option that takes a value; `default` says what holds without it."""
    return typer.Option(*names, metavar=metavar, help=help, show_default=default)


Home = Annotated[Path | None, option("DIR", "The stack's folder.", "--home", default=".forebay")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[str, argument("MODEL", "name, name/3 or name@alias.")]
Id = Annotated[str, argument("ID", "A job's id, or how it begins.")]
MATCHES_SHOWN = 4
_ID_START = re.compile("[0-9a-fA-F]{4,31}")
COLUMNS_HELP = "What goes into the model, by comma; INPUT=COLUMN for several inputs."
Columns = Annotated[str | None, option("NAMES", COLUMNS_HELP)]
Format = Annotated[str | None, option("FORMAT", f"{', '.join(FORMATS)}.", default="by the file's ending")]
Metadata = Annotated[
    list[str] | None, option("KEY=VALUE", "May be repeated; VALUE is JSON, or else text.", "--metadata")
]
Timeout = Annotated[
    str | None, option("TIME", "Wait at most so long: 30, 45s, 5m, 2h.", "--timeout", default="for ever")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Print the job's id and return.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Connect = Callable[[], "Client"]  # opens the client of a command, which closes it


def confirm(question: str, consequence: str, yes: bool) -> bool:
    """Ask on the terminal unless `yes`; InvalidInput, which says what would happen, when there is none to ask on."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InvalidInput(f"{consequence} and there is no terminal to ask on; add --yes")
    return typer.confirm(question, err=True)


def open_client(home: Path | None) -> Client:
    """A client for the settings that hold here, `home` before all others. Close it, or use it in a `with` block."""
    from forebay.producer.client import Client  # what only runs the parts needs none

    settings = Settings.load(home=home)
    structlog.configure(processors=[structlog.processors.add_log_level, _to_stderr])
    return Client(settings)


def find_job(client: Client, id: str) -> Job:
    """The job with this id, or the only one whose id begins so."""
    if not _ID_START.fullmatch(id):
        return client.job(id)  # or why it is none
    found = client.session.jobs.queries.ids_with(id.lower(), MATCHES_SHOWN + 1)
    if len(found) > 1:
        more = ", …" if len(found) > MATCHES_SHOWN else ""
        raise InvalidInput(f"the ids of several jobs begin with {id}: {', '.join(found[:MATCHES_SHOWN])}{more}")
    if not found:
        raise JobNotFound(f"no job's id begins with {id}; `forebay jobs list` has those that there are")
    return client.job(found[0])


def parse_json(text: str, what: str) -> Any:
    """`text` as JSON; InvalidInput, which calls the text `what`, for anything else, NaN and a repeated key included."""
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_repeated_key)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise InvalidInput(f"{what} is not JSON: {shown(text)}: {reason}") from error


def json_option(text: str | None, what: str) -> Any:
    """The value of an option that takes JSON, or `@file` with JSON in it; None when it was not given."""
    if text is None or not text.startswith("@"):
        return None if text is None else parse_json(text, what)
    return parse_json(read_text(Path(text[1:])), f"{what} in {text[1:]}")


def read_text(path: Path) -> str:
    return as_text(read_bytes(path), shown(str(path)))


def read_bytes(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except (OSError, ValueError) as error:
        raise cannot("read", path, error) from error


def as_text(data: bytes, where: str) -> str:
    """UTF-8, with or without a byte order mark, as text; InvalidInput otherwise."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{where} is not UTF-8 text: {error}") from error


def cannot(act: str, path: Path, error: Exception) -> InvalidInput:
    """The error for a file that cannot be read or written."""
    return InvalidInput(f"cannot {act} {shown(str(path))}: {getattr(error, 'strerror', None) or error}")


def pairs(texts: Sequence[str] | None, option: str) -> dict[str, Any] | None:
    """Repeated KEY=VALUE as a dict, each VALUE read as JSON where it is JSON; None when there are none."""
    given: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidInput(f"{option} {shown(text)} is not KEY=VALUE")
        if key in given:
            raise InvalidInput(f"{option} gives {shown(key)} twice")
        given[key] = json_or_text(value)
    return given or None


def json_or_text(text: str) -> Any:
    """The value that is written as JSON, or else the text."""
    try:
        return parse_json(text, "value")
    except InvalidInput:
        return text


def timeout_s(text: str | None) -> float | None:
    """`--timeout` in seconds; 0 asks without waiting, None waits for ever."""
    if text is None or text.strip() in ("0", "0s"):
        return None if text is None else 0.0
    return _duration(text, "--timeout")


def countdown(text: str | None) -> Callable[[], float | None]:
    """`--timeout` from now on: what is left of it in seconds, whatever took the time; None for ever."""
    wait_s, started = timeout_s(text), time.monotonic()
    return lambda: None if wait_s is None else max(0.0, wait_s - (time.monotonic() - started))


def deadline(text: str | None) -> float | datetime | None:
    """`--deadline`, as seconds from now or as a point in time; a date without a time zone is local."""
    return _time(text, "--deadline", "a time from now (90, 15m, 12h) or a date (2030-01-31, 2030-01-31T18:00Z)")


def since(text: str | None) -> float | datetime | None:
    """`--since`, as seconds ago or as a point in time; a date without a time zone is local."""
    return _time(text, "--since", "how long ago (90, 15m, 12h) or a date (2026-01-31, 2026-01-31T18:00Z)")


def names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",") if name.strip()] if text is not None else None


def columns_option(text: str | None) -> list[str] | dict[str, str] | None:
    """`--columns`: names, or INPUT=COLUMN for each input of the model."""
    listed = names(text)
    if listed is None or not any("=" in name for name in listed):
        return listed
    given = [name.partition("=") for name in listed]
    if not all(equals and column for _, equals, column in given):
        raise InvalidInput(f"--columns {text!a}: write names, or INPUT=COLUMN for all of them")
    return {name: column for name, _, column in given}


def _time(text: str | None, option: str, what: str) -> float | datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone() if "-" in text else _duration(text, option)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{option} {shown(text)} is not {what}") from error


def _duration(text: str, option: str) -> float:
    try:
        return seconds(text)
    except InvalidInput as error:
        raise InvalidInput(f"{option}: {error}") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _no_repeated_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {shown(next(name for name in names if names.count(name) > 1))} is there twice")
    return found


def _to_stderr(_logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    about = "; ".join(f"{key}: {value}" for key, value in event.items() if key not in ("event", "level"))
    print_note(f"{method}: {str(event['event']).replace('_', ' ')}; {about}")
    raise structlog.DropEvent
