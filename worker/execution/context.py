"""What the handlers of a child share: its settings, stores, device and models. Made once, before the first job."""

from __future__ import annotations

from functools import cached_property

import redis

from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import make_app
from forebay.contract.wire.dispatch import Dispatcher
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.drift import DriftStore
from forebay.storage.models.registry import ModelRegistry
from forebay.worker.announcer import Announcer
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.drift_watch import DriftWatch
from forebay.worker.execution.engine import Engine
from forebay.worker.execution.model_cache import ModelCache, ModelLoader
from forebay.worker.shared_page import SharedPage

EXPLAIN_TIMES = 64  # the version's batch size: so many rows, steps of gradients among them, may go forward together
RECENT_BYTES = 64 << 20  # of payloads, for jobs with equal inputs, or that are tried again


class ChildContext:
    """Shared by all handlers of a child. `models` loads versions on its device, `engine` runs their batches."""

    def __init__(
        self, settings: Settings, ledger: Ledger, blobs: BlobStore, broker: redis.Redis, page: SharedPage,
        metrics: ChildMetrics, ceilings: MemoryCeilings, cache: ModelCache,
    ) -> None:  # fmt: skip
        self.settings, self.ledger, self.blobs, self.broker = settings, ledger, blobs, broker
        self.page, self.metrics, self.cache, self.ceilings = page, metrics, cache, ceilings
        self.jobs = JobStore(ledger)
        self.registry = ModelRegistry(ledger)
        self.payloads = Payloads(blobs, settings, RECENT_BYTES)
        self.announcer = Announcer(broker)
        self.models = ModelLoader(self.registry, cache, page, settings)
        self.engine = Engine(ceilings, metrics)
        self.drift = DriftWatch(DriftStore(ledger))
        self._ceilings = ceilings

    @cached_property
    def explain_ceilings(self) -> MemoryCeilings:
        """How many rows of a version go forward together where they are explained, which takes more memory than predicting."""
        return self._ceilings.apart("explain", EXPLAIN_TIMES)

    @cached_property
    def explain_engine(self) -> Engine:
        """What runs the batches of explanations."""
        return Engine(self._ceilings.apart("explain"), self.metrics)

    @cached_property
    def dispatcher(self) -> Dispatcher:
        """What sends further jobs. Made for the first kind that needs it: predict does not."""
        return Dispatcher(make_app(self.settings))
