"""What a child's handlers share, without a child: the ledger and the blobs are real, there is no queue and no model."""

import fakeredis

from forebay.contract.settings import Settings
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.blobs.store import BlobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.ceilings import CeilingStore
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.model_cache import ModelCache
from forebay.worker.execution.summary import Summary
from forebay.worker.shared_page import SharedPage


class KeptJobs:
    """A dispatcher that keeps what it was to send."""

    def __init__(self) -> None:
        self.sent: list[RoutedJob] = []

    def send_jobs(self, jobs: list[RoutedJob]) -> None:
        self.sent += jobs


def child_context(
    settings: Settings, ledger: Ledger, blobs: BlobStore | None = None, page: SharedPage | None = None
) -> ChildContext:
    """A context whose `dispatcher` is KeptJobs."""
    context = ChildContext(
        settings, ledger, blobs or BlobStore(settings.blobs), fakeredis.FakeRedis(), page or SharedPage(), ChildMetrics(),
        MemoryCeilings(CeilingStore(ledger, "cpu")), ModelCache(0, lambda *_: None, "cpu"),
    )  # fmt: skip
    context.__dict__["dispatcher"] = KeptJobs()
    return context


def attempts_of(context: ChildContext) -> Attempts:
    """What the handlers of this context claim and end jobs with."""
    return Attempts(context.jobs, context.announcer, context.page, context.metrics, context.settings)


def fate(summary: Summary) -> str:
    """What became of the one job of a summary."""
    counts = {name: getattr(summary, name) for name in ("succeeded", "failed", "stopped", "postponed", "lost")}
    [name] = [name for name, count in (counts | {"released": len(summary.released)}).items() if count]
    return name
