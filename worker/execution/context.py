"""What the handlers of a child share: its settings, stores, device and models. Made once, before the first job."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import redis

from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import make_app
from forebay.contract.wire.dispatch import Dispatcher
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.registry import ModelRegistry
from forebay.worker.announcer import Announcer
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.engine import Engine
from forebay.worker.execution.model_cache import ModelCache, ModelLoader
from forebay.worker.shared_page import SharedPage


@dataclass(frozen=True)
class ChildContext:
    """Shared by all handlers of a child."""

    settings: Settings
    ledger: Ledger
    blobs: BlobStore
    broker: redis.Redis
    page: SharedPage
    metrics: ChildMetrics
    ceilings: MemoryCeilings
    cache: ModelCache

    @cached_property
    def models(self) -> ModelLoader:
        """What loads model versions on this child's device."""
        return ModelLoader(self.registry, self.cache, self.page, self.settings)

    @cached_property
    def engine(self) -> Engine:
        """What runs their batches."""
        return Engine(self.ceilings, self.metrics)

    @cached_property
    def jobs(self) -> JobStore:
        """The ledger's jobs."""
        return JobStore(self.ledger)

    @cached_property
    def registry(self) -> ModelRegistry:
        """The model versions there are."""
        return ModelRegistry(self.ledger)

    @cached_property
    def payloads(self) -> Payloads:
        """Inputs and results, inline or in the blob store."""
        return Payloads(self.blobs, self.settings)

    @cached_property
    def announcer(self) -> Announcer:
        """What tells clients which of their jobs have ended."""
        return Announcer(self.broker)

    @cached_property
    def dispatcher(self) -> Dispatcher:
        """What sends further jobs."""
        return Dispatcher(make_app(self.settings))
