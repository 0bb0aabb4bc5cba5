"""Whether a run was asked to stop. Knows no library, so that a trainer process can listen before it has loaded any."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Stopped(Exception):
    """The run was asked to stop, and has saved its state."""


class Stop:
    """Whether SIGTERM has come."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._heard)

    def _heard(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self.asked = True
