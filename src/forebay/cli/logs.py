"""`forebay logs`: the last lines of what a stack's processes have logged, and what they log next."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.producer.cli.output import one_line, print_line

POLL_S = 0.2


def print_logs(home: Path, name: str | None, lines: int, *, follow: bool) -> None:
    """The last `lines` of each log, or of the one called `name`; with `follow` it goes on until Ctrl-C."""
    logs = {path.stem: path for path in sorted([*home.glob("logs/*.log"), *home.glob("valkey/*.log")])}
    if name is not None and name not in logs:
        there = f"there are {', '.join(logs)}" if logs else "`forebay up` has not run there yet"
        raise InvalidInput(f"{home} has no log called {shown(name)}; {there}")
    if not logs:
        raise InvalidInput(f"there are no logs in {home}; `forebay up` has not run there yet")
    wanted = logs if name is None else {name: logs[name]}
    ends = {log: _print_last(log, path, lines, alone=name is not None) for log, path in wanted.items()}
    while follow:
        time.sleep(POLL_S)
        for log, path in wanted.items():
            ends[log] = _print_from(log, path, ends[log], alone=name is not None)


def _print_last(log: str, path: Path, lines: int, *, alone: bool) -> int:
    with suppress(FileNotFoundError), path.open("rb") as file:  # it was deleted just now
        last = deque(file, maxlen=lines)
        for line in last:
            _print(log, line, alone=alone)
        return file.tell()
    return 0


def _print_from(log: str, path: Path, start: int, *, alone: bool) -> int:
    """Print whole lines that came since byte `start`; the byte at which the next one begins. A shorter file is a new one, and
    one that was deleted may come again.
    """  # fmt: skip
    with suppress(FileNotFoundError), path.open("rb") as file:
        if file.seek(0, 2) < start:
            start = 0
        file.seek(start)
        for line in file:
            if line.endswith(b"\n"):
                _print(log, line, alone=alone)
                start += len(line)
        return start
    return 0


def _print(log: str, line: bytes, *, alone: bool) -> None:
    text = "".join(c if c.isprintable() or c == "\t" else one_line(c) for c in line.decode("utf-8", "replace").rstrip())
    print_line(text if alone else f"{log:<10}{text}")
