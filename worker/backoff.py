"""How long a job waits after a transient error: exponential backoff with full jitter, so that many do not come back at once.

The formula is "full jitter" of Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import random
from collections.abc import Callable

BASE_S, CAP_S = 1.0, 300.0


def longest_s(attempt: int) -> float:
    """The longest wait after so many attempts, from 1: 1 s, 2 s, 4 s, … up to five minutes."""
    return min(CAP_S, BASE_S * 2.0 ** min(attempt - 1, 30))


def delay_s(attempt: int, draw: Callable[[], float] = random.random) -> float:
    """A wait drawn evenly from 0 up to the longest; `draw` gives a number from 0 to 1."""
    return draw() * longest_s(attempt)
