"""Reading a trainer's events while it writes them. Knows the file's form, and nothing of what the events mean."""

from __future__ import annotations

from pathlib import Path

import structlog

from forebay.contract.requests.training import Event, load_event

log = structlog.get_logger()

AT_ONCE = 1 << 20


class Tail:
    """The events of a growing file, each once. A line that is not whole yet waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._part = b""

    def read(self) -> list[Event]:
        """Those that came since this was last called; none while there is no file."""
        events = []
        while data := self._more():
            *lines, self._part = (self._part + data).split(b"\n")
            for line in lines:
                event = load_event(line.decode("utf-8", "replace"))
                if event is not None:
                    events.append(event)
                elif line.strip():
                    log.warning("trainer_event_odd", line=line[:200].decode("utf-8", "replace"))
        return events

    def _more(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read(AT_ONCE)
        except FileNotFoundError:
            return b""
        self._at += len(data)
        return data
