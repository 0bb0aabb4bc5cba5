"""Which waiting job_messages run next, and how rows are cut into batches. Pure: no Celery, no ledger, no clock.

`Waiting` lives in the parent and lets model versions take turns; `cut` lives in the child and makes batches of rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Waiting(Generic[T]):
    """Items that wait by key. Keys take turns; within a key the order of arrival is kept."""

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
        """Everything that waits, which no longer does."""
        items = [item for line in self._by_key.values() for _, item in line]
        self._by_key.clear()
        self._count = 0
        return items


def cut(
    rows: Sequence[T],
    max_size: int,
    *,
    key: Callable[[T], Hashable],
    alone: Callable[[T], Hashable | None],
    cost: Callable[[T], int] | None = None,
    max_cost: int | None = None,
) -> Iterator[list[T]]:
    """Batches of at most `max_size` rows of equal `key`; every row once, the order within a key kept.

    Rows for which `alone` gives something other than None share a batch only with rows for which it gives the same: what
    may have killed a worker before can then kill nothing but itself. With `cost` (tokens of a text, say) rows of like cost
    share a batch, the most expensive first, and `max_cost` bounds what a batch costs once its rows are padded to the
    longest: rows times the greatest cost. A row that exceeds it by itself is a batch by itself.
    """
    groups: dict[Hashable, list[T]] = {}
    for row in rows:
        groups.setdefault((alone(row), key(row)), []).append(row)
    for group in groups.values():
        if cost is None:
            yield from (group[start : start + max_size] for start in range(0, len(group), max_size))
        else:
            yield from _cut_by_cost([(cost(row), row) for row in group], max_size, max_cost)


def _cut_by_cost(priced: list[tuple[int, T]], max_size: int, max_cost: int | None) -> Iterator[list[T]]:
    priced.sort(key=lambda pair: -pair[0])  # stable, so equal costs keep their order
    start = 0
    while start < len(priced):
        greatest = max(1, priced[start][0])
        size = max_size if max_cost is None else max(1, min(max_size, max_cost // greatest))
        yield [row for _, row in priced[start : start + size]]
        start += size
