"""How rows are cut into batches. Pure: no ledger, no clock."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


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
