"""How many requests an endpoint is sent at once, and when: found out by how it answers, as TCP finds out its window.

One more after each window of answers that went well, half as many after one that did not (additive increase, multiplicative
decrease). Requests that were already on their way when it was halved do not halve it again.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

START, LEAST, CUT = 10, 1, 0.5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # while an endpoint takes nothing and does not say for how long
LONGEST_RETRY_AFTER_S = 3600.0


class Concurrency:
    """The window of one endpoint. Times are `clock`'s seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, draw: Callable[[], float] = random.random) -> None:
        self._clock, self._draw = clock, draw
        self.limit, self.running = START, 0
        self.successes = 0
        self._in_window = 0
        self._was_full = False
        self._cut_at = -math.inf
        self._refusals = 0  # without a success between
        self._paused_until = -math.inf

    def free(self, most: int) -> bool:
        """Whether one more request may be sent now, of a version that allows `most`."""
        full = self.running >= min(self.limit, most)
        self._was_full = self._was_full or self.running >= self.limit - 1
        return not full and self.pause_s() <= 0

    def pause_s(self) -> float:
        """For how long nothing is to be sent."""
        return self._paused_until - self._clock()

    def succeeded(self) -> None:
        self.successes, self._refusals = self.successes + 1, 0
        self._in_window += 1
        if self._in_window >= self.limit:
            self.limit += self._was_full  # a window that was never used says nothing about a larger one
            self._in_window, self._was_full = 0, False

    def failed(self, sent_at: float) -> None:
        """A request that was sent at that time met an error of the server, or no answer in time."""
        if sent_at >= self._cut_at:
            self.limit, self._cut_at = max(LEAST, int(self.limit * CUT)), self._clock()
            self._in_window, self._was_full = 0, False

    def refused(self, sent_at: float, retry_after_s: float | None) -> None:
        """One was not taken: nothing is sent for as long as the server says, else for a random while that grows."""
        fresh, pause = sent_at >= self._cut_at, min(retry_after_s or 0.0, LONGEST_RETRY_AFTER_S)
        self.failed(sent_at)
        if retry_after_s is None and fresh:  # the first time in a row to send fewer will do
            if self._refusals:
                pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (self._refusals - 1)) * (0.5 + self._draw() / 2)
            self._refusals = min(self._refusals + 1, 30)
        self._paused_until = max(self._paused_until, self._clock() + pause)
