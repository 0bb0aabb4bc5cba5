"""Back-pressure for those that submit, at next to no cost: whether a queue with a maximum has room for more jobs.

A queue without `max_queue_size` is never counted. Of any other a client reserves a small share of the room that is left, and
submits that many jobs before it counts again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from forebay.contract.queues import QueueSpec
from forebay.storage.jobs.store import JobStore

SHARE = 100  # a client reserves a hundredth of a queue's maximum at a time
KEEP_S = 10.0  # and gives up what is left of it after so long


class QueueQuota:
    """What one client may still add to each queue. Thread-safe.

    A maximum may be exceeded by a hundredth of it for each other client that submits to the queue within the same ten
    seconds, since nobody sees what another has reserved and not yet used. It is exact for one client, for a queue that takes
    fewer than 100 jobs, and for a `predict_many` of more than a hundredth: those are counted in the transaction that adds them.
    """

    def __init__(
        self, store: JobStore, queues: Mapping[str, QueueSpec], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._queues = queues
        self._clock = clock
        self._lock = threading.Lock()
        self._reserved: dict[str, tuple[int, float]] = {}  # jobs left of the share, and until when

    def take(self, queue: str, count: int, *, keyed: bool = False) -> int | None:
        """Take room for `count` jobs: None when there is enough, or the maximum to be checked as they are added.

        QueueFull when there is not enough. `keyed` jobs may exist already, so they are never refused here.
        """
        maximum = self._queues[queue].max_queue_size
        if maximum is None:
            return None
        share = maximum // SHARE
        if not share:
            return maximum
        with self._lock:
            left, until = self._reserved.get(queue, (0, 0.0))
            if count <= left and self._clock() < until:
                self._reserved[queue] = (left - count, until)
                return None
            room = maximum - self._store.queries.count_waiting(queue, maximum)
            if count <= min(room, share):
                self._reserved[queue] = (min(room, share) - count, self._clock() + KEEP_S)
                return None
        if count > room and not keyed:
            raise self._store.refusal(queue, count, maximum)
        return maximum
