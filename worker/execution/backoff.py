"""Which errors may pass, and how long a job waits then: exponential backoff with full jitter, so that many jobs do not come
back at once.

The formula is "full jitter" of Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

from forebay.contract.errors import Transient

BASE_S, CAP_S = 1.0, 300.0
# Of a file system that is away, busy or full. Others say that a file is missing, refused or broken.
PASSING = {
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "EDQUOT", "EHOSTDOWN", "EHOSTUNREACH", "EINTR", "EIO", "ENETDOWN", "ENETUNREACH", "ENOSPC",
        "ENOTCONN", "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
}  # fmt: skip


def may_pass(error: BaseException | None) -> bool:
    """Whether to try again later: Transient errors, and those of a file system or network that is away."""
    if isinstance(error, Transient | ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in PASSING


def longest_s(attempt: int) -> float:
    """The longest wait after so many attempts, from 1: 1 s, 2 s, 4 s, … up to five minutes."""
    return min(CAP_S, BASE_S * 2.0 ** min(attempt - 1, 30))


def delay_s(attempt: int, draw: Callable[[], float] = random.random) -> float:
    """A wait drawn evenly between 0 and the longest; `draw` gives a number from 0 to 1."""
    return draw() * longest_s(attempt)
