"""How many messages a parent should hold: about a second of work for its children, whatever a job costs.

Fewer would leave a child idle and make small batches; more would be hoarded from another worker that has nothing to do.
Pure: told what was done and in which time, it answers with a number.
"""

from __future__ import annotations

HOLD_S = 1.0
LEAST, MOST = 1, 32
START = 4  # before anything was measured
WEIGHT = 0.3  # of the newest hand-over in the running mean


class Pace:
    """The running mean of what one job costs and of how many a message carries."""

    def __init__(self, children: int = 1) -> None:
        self._children = children
        self._seconds_per_job = 0.0
        self._jobs_per_message = 1.0

    def note(self, jobs: int, messages: int, seconds: float) -> None:
        """A child did so many jobs, which came in so many messages, in this time."""
        if jobs < 1 or messages < 1:
            return
        first = self._seconds_per_job == 0.0
        weight = 1.0 if first else WEIGHT
        self._seconds_per_job += weight * (seconds / jobs - self._seconds_per_job)
        self._jobs_per_message += weight * (jobs / messages - self._jobs_per_message)

    def messages(self) -> int:
        """How many messages to hold beside those the children work on."""
        if self._seconds_per_job == 0.0:
            return START
        per_message = self._seconds_per_job * self._jobs_per_message  # seconds
        return int(min(MOST, max(LEAST, self._children * HOLD_S / max(per_message, 1e-9))))
