"""What became of one hand-over of job ids: counts that a child adds up, and says to its parent and to Flower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forebay.storage.jobs.records import Ended, Finished


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of one hand-over of ids. `unclaimed` were finished, canceled, not due, of other queues or taken by others."""

    succeeded: int = 0
    failed: int = 0
    stopped: int = 0  # canceled on request, or past their deadline before they were begun
    postponed: int = 0  # after a transient error
    unclaimed: int = 0
    dropped: int = 0  # results refused because the lease was lost
    rows: int = 0
    batches: int = 0
    tokens: int = 0  # of the rows themselves, where the model counts them
    padded: int = 0  # of the rows padded to the longest of their batch
    left: tuple[str, ...] = ()  # ids given back unrun, because this process has to stop

    def __add__(self, other: Summary) -> Summary:
        return Summary(*(getattr(self, n) + getattr(other, n) for n in self.__slots__))

    def __str__(self) -> str:
        padding = f", padding {self.padding:.0%}" if self.padded else ""
        rare = "".join(f", {n} {word}" for n, word in ((self.stopped, "stopped"), (self.postponed, "postponed")) if n)
        about = f"{self.succeeded} succeeded, {self.failed} failed{rare}"
        return f"{about}, {self.unclaimed} not ours, {self.batches} batches{padding}"

    @property
    def padding(self) -> float:
        """Which share of what the device computed was padding."""
        return 1 - self.tokens / self.padded if self.padded else 0.0


def summary_of(finished: Sequence[Finished], ended: Sequence[Ended], postponed: int, canceled: int, of: int) -> Summary:
    """Of attempts that were to end so, of which `ended` were still ours."""
    written = {job.id for job in ended}
    failed = sum(o.error is not None for o in finished if o.id in written)
    stopped = sum(o.ending is not None for o in finished if o.id in written)
    return Summary(
        succeeded=len(ended) - failed - stopped,
        failed=failed,
        stopped=stopped + canceled,
        postponed=postponed,
        dropped=of - len(ended) - canceled - postponed,
    )
