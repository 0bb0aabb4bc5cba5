"""Waiting for many jobs at once: `as_completed` and `wait`, as `concurrent.futures` has them."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from concurrent import futures
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from forebay.contract.errors import InvalidInput, ResultTimeout


class HasFuture(Protocol):
    def future(self) -> futures.Future[Any]: ...


J = TypeVar("J", bound=HasFuture)


class Waited(NamedTuple, Generic[J]):
    """What `wait` gives: the jobs that have ended, and those that have not."""

    done: set[J]
    not_done: set[J]


def as_completed(jobs: Collection[J], timeout: float | None = None) -> Iterator[J]:
    """The jobs in the order in which they end; ResultTimeout when some have not after `timeout` seconds."""
    by_future = {job.future(): job for job in jobs}
    try:
        for future in futures.as_completed(by_future, countable(timeout)):
            yield by_future[future]
    except TimeoutError:
        late = sum(not future.done() for future in by_future)
        raise ResultTimeout(f"{late} of {len(by_future)} jobs have not ended after {timeout:g} s; they go on") from None


_RETURN_WHEN = {"all": futures.ALL_COMPLETED, "any": futures.FIRST_COMPLETED}


def wait(jobs: Collection[J], timeout: float | None = None, return_when: Literal["all", "any"] = "all") -> Waited[J]:
    """Wait until all jobs, or any, have ended, or `timeout` seconds have passed; which have ended and which have not."""
    if return_when not in _RETURN_WHEN:
        raise InvalidInput(f"return_when={return_when!r}: write 'all' or 'any'")
    by_future = {job.future(): job for job in jobs}
    done, not_done = futures.wait(by_future, countable(timeout), _RETURN_WHEN[return_when])
    return Waited({by_future[f] for f in done}, {by_future[f] for f in not_done})


def countable(timeout: float | None) -> float | None:
    """`timeout`, or None for one that is too long for the operating system to count."""
    return None if timeout is None or timeout >= threading.TIMEOUT_MAX else timeout
