"""The child process: owns the device and its models, and runs what the parent hands over.

`start` runs once in a fresh interpreter (spawned, never forked); `run_ids` is the pool's target. Everything else it does
is the runner's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil
import structlog

from forebay.contract.celery_app import connect_redis, make_app
from forebay.contract.dispatch import Dispatcher
from forebay.contract.logs import configure_logs
from forebay.contract.settings import Settings
from forebay.storage.batches import BatchStore
from forebay.storage.blobs import BlobStore
from forebay.storage.ceilings import Ceilings
from forebay.storage.datasets import require_pyarrow
from forebay.storage.jobs import JobStore
from forebay.storage.ledger import Ledger
from forebay.storage.models import ModelRegistry
from forebay.storage.payloads import Payloads
from forebay.worker.announcer import Announcer
from forebay.worker.artifacts import Artifacts
from forebay.worker.limits import Limits
from forebay.worker.model_cache import ModelCache
from forebay.worker.runner import Load, Runner

if TYPE_CHECKING:
    from forebay.worker.batches.shards import ShardRunner

log = structlog.get_logger()

CPU_SHARE, CUDA_SHARE = 0.5, 0.85  # of the device's memory, for models and what they run on

_runner: Runner | None = None


def start() -> None:
    """Build this child's runner from the settings it inherited, and import torch before the first job needs it."""
    global _runner
    import torch

    settings = Settings.load()
    configure_logs(settings)
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    ledger = Ledger(settings.database)
    blobs = BlobStore(settings.blobs)
    artifacts = Artifacts(blobs, settings.home / "artifacts")
    _runner = Runner(
        store=JobStore(ledger),
        registry=ModelRegistry(ledger),
        payloads=Payloads(blobs, settings),
        cache=ModelCache(
            settings.model_cache_bytes or default_budget(settings.device),
            artifacts.fetch,
            settings.device,
            settings.allowed_python_models,
        ),
        limits=Limits(Ceilings(ledger, device_kind(settings.device))),
        announcer=Announcer(connect_redis(settings)),
        worker=settings.worker_name,
        lease_s=settings.lease_s,
        make_shards=lambda load: _shard_runner(settings, ledger, load),
    )
    log.info(
        "child_ready",
        worker=settings.worker_name,
        device=settings.device,
        pid=os.getpid(),
        threads=torch.get_num_threads(),
    )


def run_ids(model: str, version: int, ids: Sequence[str]) -> tuple[bool, str, float]:
    """Run jobs and say how it went: (failed, words for Flower, seconds). Never raises: the pool would lose the messages."""
    started = time.monotonic()
    try:
        if _runner is None:
            start()
        assert _runner is not None  # noqa: S101 - start() sets it or raises
        if not ids:  # an empty envelope: `forebay models warm`
            _runner.warm(model, version)
        return False, str(_runner.run(ids)), time.monotonic() - started
    except Exception as error:  # the jobs keep their leases; the sweeper frees what stays running
        log.exception("hand_over_failed", model=f"{model}/{version}", jobs=len(ids))
        return True, f"{type(error).__name__}: {error}", time.monotonic() - started


def _shard_runner(settings: Settings, ledger: Ledger, load: Load) -> ShardRunner:
    """What runs batch jobs; MissingExtra without pyarrow."""
    require_pyarrow()
    from forebay.worker.batches.shards import ShardRunner
    from forebay.worker.batches.tender import Tender

    store, registry, broker = BatchStore(ledger), ModelRegistry(ledger), connect_redis(settings)
    payloads, dispatcher = Payloads(BlobStore(settings.blobs), settings), Dispatcher(make_app(settings))
    tender = Tender(store, registry, payloads, dispatcher, Announcer(broker), broker)
    limits = Limits(Ceilings(ledger, device_kind(settings.device)))
    return ShardRunner(store, tender, registry, limits, load, settings.worker_name, settings.lease_s)


def device_kind(device: str) -> str:
    """What devices of this kind are called: batch sizes that fit on one fit on the others."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))[:100]
    return "cpu"


def default_budget(device: str) -> int:
    """How many bytes of the device its models may take up when nothing is configured."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory * CUDA_SHARE)
    return int(psutil.virtual_memory().total * CPU_SHARE)
