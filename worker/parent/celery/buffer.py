"""The messages that wait in the parent for a free child. Knows neither Celery nor Redis."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from forebay.contract.wire.messages import TaskArgs

T = TypeVar("T")


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


class RoundRobinQueue(Generic[T]):
    """Items by key. Keys take turns; within a key the order of arrival is kept."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, deque[tuple[int, T]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, key: Hashable, item: T, size: int) -> None:
        """Add an item that counts for `size`."""
        self._by_key.setdefault(key, deque()).append((size, item))
        self._count += 1

    def take(self, limit: int) -> list[T]:
        """The next key's oldest items, at least one and then as many as stay within `limit` in size; [] when none wait.

        The key goes to the end of the line, so a busy model cannot keep another one waiting for more than one turn.
        """
        if not self._by_key:
            return []
        key = next(iter(self._by_key))
        line = self._by_key.pop(key)
        size, first = line.popleft()
        taken = [first]
        while line and size + line[0][0] <= limit:
            more, item = line.popleft()
            size += more
            taken.append(item)
        if line:
            self._by_key[key] = line
        self._count -= len(taken)
        return taken

    def clear(self) -> list[T]:
        items = [item for line in self._by_key.values() for _, item in line]
        self._by_key.clear()
        self._count = 0
        return items


class MessageBuffer:
    """A round-robin queue for each priority, and beside them the messages held back until their batch is full."""

    def __init__(self) -> None:
        self._queues: dict[int, RoundRobinQueue[ReceivedMessage]] = {}
        self._held: dict[Hashable, list[ReceivedMessage]] = {}

    def __len__(self) -> int:  # any thread may ask; the answer may be a moment old
        return sum(map(len, list(self._queues.values()))) + sum(map(len, list(self._held.values())))

    @property
    def ready(self) -> bool:
        return any(self._queues.values())

    def put(self, message: ReceivedMessage) -> None:
        queue = self._queues.setdefault(message.priority, RoundRobinQueue())
        queue.put(message.key, message, len(message.args.ids))

    def hold(self, message: ReceivedMessage) -> list[ReceivedMessage]:
        """Add a message that waits for `release`; all that are held with its key."""
        held = self._held.setdefault(message.key, [])
        held.append(message)
        return held

    def release(self, key: Hashable) -> None:
        for message in self._held.pop(key, ()):
            self.put(message)

    def release_all(self) -> None:
        for key in list(self._held):
            self.release(key)

    def take(self, limit: int) -> list[ReceivedMessage]:
        """Messages of one key and of the most urgent priority, of up to `limit` ids; [] when none wait."""
        for _, queue in sorted(self._queues.items()):  # 0 comes first
            if queue:
                return queue.take(limit)
        return []

    def clear(self) -> list[ReceivedMessage]:
        """Remove and return everything, the most urgent first."""
        self.release_all()
        return [message for _, queue in sorted(self._queues.items()) for message in queue.clear()]
