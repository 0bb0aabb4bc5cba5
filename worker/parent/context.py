"""What the heartbeat and the sweeps of one worker share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from forebay.contract.errors import ForebayError
from forebay.contract.settings import Settings
from forebay.storage.jobs.store import JobStore
from forebay.storage.workers import WorkerRegistry
from forebay.worker.parent.children import ChildMonitor
from forebay.worker.parent.metrics import WorkerMetrics

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ParentContext:
    settings: Settings
    store: JobStore
    workers: WorkerRegistry
    children: ChildMonitor
    metrics: WorkerMetrics

    def tolerate(self, what: str, action: Callable[[], object]) -> bool:
        """Whether the action went through. An error is logged and counted: the thread must go on, and tries again later."""
        worker = self.settings.worker_name
        try:
            action()
        except ForebayError as error:
            log.warning("housekeeping_failed", what=what, worker=worker, error=str(error))
        except Exception:
            log.exception("housekeeping_failed", what=what, worker=worker)
        else:
            return True
        self.metrics.count("housekeeping_failures_total", what)
        return False
