"""What became of the jobs of one pool task: counts that a child adds up, and reports to its parent and to Flower."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from operator import add

from msgspec import Struct
from msgspec.structs import astuple


class Fate(StrEnum):
    """What became of a claimed job."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"  # canceled on request, or past its deadline before it was begun
    POSTPONED = "postponed"  # queued again for later
    RELEASED = "released"  # queued again at once: this process has to stop, or the job's own process died
    LOST = "lost"  # the lease was lost: nothing of the attempt was written


FINAL_FATES = (Fate.SUCCEEDED, Fate.FAILED, Fate.STOPPED)


class Summary(Struct, frozen=True):
    """What became of the jobs of one pool task, and of what size the batches were that ran.

    `unclaimed` ids were finished, canceled, not due, of other queues, or taken by others. `released` ids go back to their queues.
    """

    succeeded: int = 0
    failed: int = 0
    stopped: int = 0
    postponed: int = 0
    lost: int = 0
    unclaimed: int = 0
    rows: int = 0
    batches: int = 0
    tokens: int = 0  # of the rows themselves, where the model counts them
    padded: int = 0  # of the rows padded to the longest of their batch
    released: tuple[str, ...] = ()

    @classmethod
    def of(cls, fates: Mapping[str, Fate]) -> Summary:
        """Counts jobs, given by id."""
        counts = Counter(fates.values())
        return cls(
            succeeded=counts[Fate.SUCCEEDED], failed=counts[Fate.FAILED], stopped=counts[Fate.STOPPED],
            postponed=counts[Fate.POSTPONED], lost=counts[Fate.LOST],
            released=tuple(id for id, fate in fates.items() if fate is Fate.RELEASED),
        )  # fmt: skip

    def __add__(self, other: Summary) -> Summary:
        return Summary(*map(add, astuple(self), astuple(other)))

    def __str__(self) -> str:
        padding = f", padding {self.padding:.0%}" if self.padded else ""
        rare = "".join(f", {n} {word}" for n, word in ((self.stopped, "stopped"), (self.postponed, "postponed")) if n)
        about = f"{self.succeeded} succeeded, {self.failed} failed{rare}"
        return f"{about}, {self.unclaimed} not ours, {self.batches} batches{padding}"

    @property
    def padding(self) -> float:
        """Which share of what the device computed was padding."""
        return 1 - self.tokens / self.padded if self.padded else 0.0
