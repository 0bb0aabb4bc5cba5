"""How the commands speak: tables for people, JSON for programs, and one line on stderr for every error.

Tables are coloured on a terminal and plain, aligned text elsewhere. Knows what the ledger's records look like, but asks
nobody for any of them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import PurePath
from typing import Any

import typer
from msgspec import Struct
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from forebay.contract import errors
from forebay.contract.job import JobState
from forebay.contract.signature import Signature
from forebay.contract.values import jsonable

JOB_FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
STEP = "    "  # how a line of a message begins that is there to be copied

# What the user can put right by asking differently; all other errors are a job's or a service's.
USAGE_ERRORS = (
    errors.InvalidInput,
    errors.ModelNotFound,
    errors.JobNotFound,
    errors.NoQueueFits,
    errors.IllegalTransition,
    errors.ModelRefused,
    errors.DeviceNotFound,
    errors.MissingExtra,
)

STATE_STYLES = {
    JobState.QUEUED: "cyan",
    JobState.RUNNING: "blue",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELED: "yellow",
    JobState.EXPIRED: "yellow",
}
ID_WIDTH = 32
_SPANS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


@contextmanager
def clear_errors() -> Iterator[None]:
    """Around or (as a decorator) on a command: each ForebayError ends it with a line on stderr, never a traceback.

    Exit status 2 for what was asked wrongly, 1 for a failed job or service, 130 for Ctrl-C, 141 for a closed pipe. It leaves
    by SystemExit, which holds inside a Typer app and around one.
    """
    try:
        yield
        sys.stdout.flush()  # here, not at the interpreter's end, where a closed pipe makes noise
    except errors.ForebayError as error:
        print_error(error)
        raise SystemExit(exit_status(error)) from None
    except KeyboardInterrupt:
        print_note("interrupted")
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        _drop_stdout()
        raise SystemExit(BROKEN_PIPE) from None


def exit_status(error: errors.ForebayError) -> int:
    return USAGE if isinstance(error, USAGE_ERRORS) else JOB_FAILED


def print_error(error: errors.ForebayError) -> None:
    """Write one line to stderr, and below it those of the message that are there to be copied: indented ones at its end."""
    told, *lines = str(error).split(f"\n{STEP}")
    copied = not any("\n" in line for line in lines)
    print_note(f"error: {told if copied else error}")
    for line in lines if copied else ():
        print_indented(STEP + one_line(line))


def print_note(text: str) -> None:
    """Write one line about what goes on to stderr, where it is in no program's way."""
    typer.echo(_writable(one_line(text), sys.stderr), err=True)


def print_indented(line: str) -> None:
    """Write a line below a note, with its indentation, to stderr."""
    typer.echo(_writable(line, sys.stderr), err=True)


def print_line(text: str) -> None:
    """Write a line of data to stdout; what its encoding lacks is escaped."""
    typer.echo(_writable(text, sys.stdout))


def print_json(data: Any) -> None:
    """Records, times, arrays and all that is made of them as indented JSON."""
    print_line(json.dumps(json_data(data), ensure_ascii=False, indent=2))


def print_json_line(data: Any) -> None:
    """The same on one line: for arrays, and where there is one line per job."""
    print_line(json.dumps(json_data(data), ensure_ascii=False))


def json_data(value: Any) -> Any:
    """`value` as JSON data: dataclasses as objects, times in ISO 8601, arrays as lists, bytes as {"base64": …}."""
    if isinstance(value, Signature):
        return {"inputs": value.inputs_json(), "outputs": value.outputs_json()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_data(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Struct):
        return {name: json_data(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        return {str(key): json_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_data(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, PurePath) else jsonable(value)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str] = ()) -> None:
    """A table with a title above each column, those in `right` aligned right; None is shown as a dash."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(_rich_table(titles, rows, right))
        return
    cells = [list(titles), *([_shown(cell) for cell in row] for row in rows)]
    _print_aligned(cells, [str.rjust if title in right else str.ljust for title in titles])


def print_fields(pairs: Mapping[str, Any]) -> None:
    """One thing in detail: a name and a value per line; what is None is left out."""
    _print_aligned([[name, _shown(value)] for name, value in pairs.items() if value is not None], [str.ljust] * 2)


def one_line(text: str) -> str:
    """`text` on one line, with every character that could move a terminal's cursor written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def duration(seconds: float | None) -> str | None:
    """For people: `450 ms`, `3.2 s`, `1m 15s`, `2h 5m`, `3d 4h`; None stays None."""
    if seconds is None:
        return None
    if seconds < 59.95:
        return f"{round(seconds * 1000)} ms" if seconds < 0.9995 else f"{seconds:.1f} s"
    left, parts = round(seconds), []
    for unit, size in _SPANS:
        count, left = divmod(left, size)
        parts.append(f"{count}{unit}" if count else "")
    first = next(i for i, part in enumerate(parts) if part)
    return " ".join(part for part in parts[first : first + 2] if part)


def age(then: datetime | None, now: datetime | None = None) -> str | None:
    """How long ago `then` was, for people; clocks that disagree make it 0, never less."""
    return None if then is None else duration(max(0.0, ((now or datetime.now(UTC)) - then).total_seconds()))


def moment(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone().isoformat(" ", "seconds")


def counts_text(counts: Mapping[str, int]) -> str:
    """`60 completed, 2 failed`."""
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def pairs_text(values: Mapping[str, Any]) -> str | None:
    """Metadata or options for people, as they are given on the command line; None when there are none."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return ", ".join(f"{key}={text}" for key, text in texts.items()) or None


def _rich_table(titles: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        width = ID_WIDTH if title == "ID" else None  # an id cut short is of no use
        table.add_column(title, justify="right" if title in right else "left", overflow="fold", min_width=width)
    for row in rows:
        table.add_row(*(Text(_shown(cell), _style(cell)) for cell in row))
    return table


def _style(cell: Any) -> str:
    return STATE_STYLES[cell] if isinstance(cell, JobState) else ""


def _shown(cell: Any) -> str:
    return "-" if cell is None or cell == "" else one_line(str(cell))


def _print_aligned(cells: Sequence[Sequence[str]], justify: Sequence[Callable[[str, int], str]]) -> None:
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = [
            pad(cell, width - cell_len(cell) + len(cell))
            for cell, pad, width in zip(row, justify, widths, strict=True)
        ]  # fmt: skip
        print_line("  ".join(padded).rstrip())


def _writable(text: str, stream: Any) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _drop_stdout() -> None:
    """Send what is still buffered nowhere, as Python's documentation advises; a test's stdout has no descriptor."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
