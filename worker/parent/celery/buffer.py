"""The messages that wait in the parent for a free child. Knows neither Celery nor Redis."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from forebay.contract.wire.messages import TaskArgs


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """One message: Celery's request, its arguments, and kombu's message to put it back by."""

    request: Any
    args: TaskArgs
    priority: int
    message: Any = None

    @property
    def key(self) -> Hashable:
        """Messages of equal key may go to a child together."""
        return self.request.id if self.args.exclusive else (self.args.model, self.args.version)


class MessageBuffer:
    """Within a priority, keys take turns; within a key the order of arrival is kept. Some messages are held back at first."""

    def __init__(self) -> None:
        self._waiting: dict[int, dict[Hashable, deque[ReceivedMessage]]] = {}
        self._held: dict[Hashable, list[ReceivedMessage]] = {}
        self._count = 0

    def __len__(self) -> int:  # any thread may ask
        return self._count

    @property
    def ready(self) -> bool:
        """Whether there is something to take."""
        return any(self._waiting.values())

    def put(self, message: ReceivedMessage) -> None:
        self._count += 1
        self._add(message)

    def hold(self, message: ReceivedMessage) -> list[ReceivedMessage]:
        """Add a message that waits for `release`; all that are held with its key."""
        self._count += 1
        held = self._held.setdefault(message.key, [])
        held.append(message)
        return held

    def release(self, key: Hashable) -> None:
        """What was held under this key, if anything, may be taken now."""
        for message in self._held.pop(key, ()):
            self._add(message)

    def release_all(self) -> None:
        for key in list(self._held):
            self.release(key)

    def take(self, limit: int) -> list[ReceivedMessage]:
        """The oldest messages of the key whose turn it is, of the most urgent priority; [] when none wait.

        At least one, and then as many as stay within `limit` ids. The key goes to the end of the line, so a busy model cannot
        keep another one waiting for more than one turn.
        """
        by_key = next((by_key for _, by_key in sorted(self._waiting.items()) if by_key), None)  # 0 comes first
        if by_key is None:
            return []
        key = next(iter(by_key))
        line = by_key.pop(key)
        taken = [line.popleft()]
        ids = len(taken[0].args.ids)
        while line and (ids := ids + len(line[0].args.ids)) <= limit:
            taken.append(line.popleft())
        if line:
            by_key[key] = line
        self._count -= len(taken)
        return taken

    def clear(self) -> list[ReceivedMessage]:
        """Remove and return everything, the most urgent first."""
        self.release_all()
        found = [m for _, by_key in sorted(self._waiting.items()) for line in by_key.values() for m in line]
        self._waiting.clear()
        self._count = 0
        return found

    def _add(self, message: ReceivedMessage) -> None:
        self._waiting.setdefault(message.priority, {}).setdefault(message.key, deque()).append(message)
