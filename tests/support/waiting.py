"""Waiting for something to become true, and a clock that only moves when told to. No test sleeps."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], description: str, timeout: float = 120.0, interval: float = 0.02) -> T:
    """What `predicate` gives once it is true; the test fails with the description when it is not so in time."""
    pause = threading.Event()
    until = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() >= until:
            pytest.fail(f"waited {timeout:g} s in vain until {description}")
        pause.wait(interval)
    return value


class FakeClock:
    """Call it for the time; it passes only when `forward` says so."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        """Let this many seconds pass."""
        self.now += seconds
