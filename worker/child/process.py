"""The child process: owns the device and its models, and runs what the parent hands over.

`start` runs once in a fresh interpreter (spawned, never forked); `run_and_report` is the pool's target. Everything else it does
is the runner's.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import psutil
import structlog

from forebay.contract.errors import MissingExtra
from forebay.contract.logs import configure_logs
from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import connect_redis, make_app
from forebay.contract.wire.dispatch import Dispatcher
from forebay.datasets import require_pyarrow
from forebay.storage.batches.store import BatchStore
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.ceilings import CeilingStore
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.store import TrainingStore
from forebay.worker.announcer import Announcer
from forebay.worker.execution.artifacts import Artifacts
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.model_cache import ModelCache
from forebay.worker.kinds.predict import Load, Runner
from forebay.worker.shared_page import STORE, WRITE, SharedPage, attach_to_parent

if TYPE_CHECKING:
    from forebay.worker.kinds.batch.shards import ShardRunner
    from forebay.worker.kinds.evaluate.evaluator import Evaluator
    from forebay.worker.kinds.train.slot import TrainingSlot

log = structlog.get_logger()

TRAINERS_NEED = ("torch", "pytorch_lightning", "torchmetrics", "pyarrow")
CPU_SHARE, CUDA_SHARE = 0.5, 0.85  # of the device's memory, for models and what they run on

_runner: Runner | None = None


def start() -> None:
    """Build this child's runner from the settings it inherited, and import torch before the first job needs it.

    A child that only trains imports none: its trainers are processes of their own, and the device is theirs.
    """
    global _runner
    page = attach_to_parent()  # before all else: a death while torch is imported is told too
    settings = Settings.load()
    configure_logs(settings)
    device = "cpu" if settings.trains_only else settings.device
    if not settings.trains_only:
        bound_memory(settings.child_memory_bytes)
        import_torch(settings.torch_threads)
    ledger = Ledger(settings.database)
    blobs = BlobStore(settings.blobs, outage_timeout_s=settings.outage_timeout_s)
    metrics = ChildMetrics(device)
    artifacts = Artifacts(blobs, settings.home / "artifacts")
    _runner = Runner(
        store=JobStore(ledger),
        registry=ModelRegistry(ledger),
        payloads=Payloads(blobs, settings),
        cache=ModelCache(
            settings.model_cache_bytes or default_budget(device, settings.child_memory_bytes),
            artifacts.fetch,
            device,
            settings.allowed_python_models,
            metrics=metrics,
        ),
        ceilings=MemoryCeilings(CeilingStore(ledger, device_kind(device))),
        announcer=Announcer(connect_redis(settings)),
        worker=settings.worker_name,
        lease_s=settings.lease_s,
        queues=settings.worker_queues or None,
        page=page,
        load_timeout_s=settings.load_timeout_s,
        outage_timeout_s=settings.outage_timeout_s,
        metrics=metrics,
        make_shards=lambda load: _shard_runner(settings, ledger, load, page, metrics),
        make_evaluator=lambda load: _evaluator(settings, ledger, load, page, metrics),
        make_slot=lambda: _training_slot(settings, ledger, page, metrics),
    )
    log.info(
        "child_ready",
        worker=settings.worker_name,
        device=settings.device,
        pid=os.getpid(),
        threads=settings.torch_threads,
    )


def import_torch(threads: int) -> None:
    """Have torch in memory, with so many threads; 0 leaves it what it takes by itself."""
    import torch

    if threads:
        torch.set_num_threads(threads)


def run_ids(model: str, version: int, ids: Sequence[str]) -> tuple[bool, str, float, list[str]]:
    """Run jobs and say how it went: (failed, words for Flower, seconds, ids given back unrun).

    Never raises: the pool would lose the messages.
    """
    started = time.monotonic()
    try:
        if _runner is None:
            start()
        assert _runner is not None  # noqa: S101 - start() sets it or raises
        if not ids:  # an empty job_message: `forebay models warm`
            _runner.warm(model, version)
        summary = _runner.run(ids)
        return False, str(summary), time.monotonic() - started, list(summary.left)
    except Exception as error:  # the jobs keep their leases; the sweeper frees what stays running
        log.exception("hand_over_failed", model=f"{model}/{version}", jobs=len(ids))
        return True, f"{type(error).__name__}: {error}", time.monotonic() - started, []


def run_and_report(model: str, version: int, ids: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The pool's target: what `run_ids` gives, and what this child has counted since it last told."""
    result = run_ids(model, version, ids)
    try:
        return result, {} if _runner is None else {"pid": os.getpid()} | _runner.report()
    except Exception:  # what cannot be counted must not cost the messages
        log.exception("report_failed")
        return result, {}


def bound_memory(limit: int) -> None:
    """Let this process take no more than `limit` bytes of private writable memory: what asks for more gets a MemoryError.

    Not the address space: CUDA reserves far more of that than it ever uses. 0 is no limit.
    """
    if limit:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _shard_runner(
    settings: Settings, ledger: Ledger, load: Load, page: SharedPage, metrics: ChildMetrics
) -> ShardRunner:
    """What runs batch jobs; MissingExtra without pyarrow."""
    require_pyarrow()
    from forebay.worker.kinds.batch.coordinator import BatchCoordinator
    from forebay.worker.kinds.batch.shards import ShardRunner

    jobs, store, registry, broker = JobStore(ledger), BatchStore(ledger), ModelRegistry(ledger), connect_redis(settings)
    blobs = BlobStore(settings.blobs, outage_timeout_s=settings.outage_timeout_s)
    dispatcher, announcer = Dispatcher(make_app(settings)), Announcer(broker)
    waiting = partial(page.limit, settings.store_timeout_s, STORE, WRITE)  # whoever tends a batch writes nothing else
    return ShardRunner(
        jobs=jobs,
        store=store,
        coordinator=BatchCoordinator(
            store, registry, Payloads(blobs, settings), dispatcher, announcer, broker, waiting
        ),
        registry=registry,
        announcer=announcer,
        ceilings=MemoryCeilings(CeilingStore(ledger, device_kind(settings.device))),
        load=load,
        worker=settings.worker_name,
        lease_s=settings.lease_s,
        page=page,
        outage_timeout_s=settings.outage_timeout_s,
        store_timeout_s=settings.store_timeout_s,
        metrics=metrics,
    )


def _evaluator(settings: Settings, ledger: Ledger, load: Load, page: SharedPage, metrics: ChildMetrics) -> Evaluator:
    """What runs evaluations; MissingExtra without pyarrow or torchmetrics."""
    require_pyarrow()
    if find_spec("torchmetrics") is None:
        raise MissingExtra("evaluations need torchmetrics: pip install 'forebay[train]' on the worker")
    from forebay.worker.kinds.evaluate.evaluator import Evaluator
    from forebay.worker.kinds.train.outcomes import Outcomes

    announcer = Announcer(connect_redis(settings))
    blobs = BlobStore(settings.blobs, outage_timeout_s=settings.outage_timeout_s)
    return Evaluator(
        store=TrainingStore(ledger),
        registry=ModelRegistry(ledger),
        payloads=Payloads(blobs, settings),
        outcomes=Outcomes(JobStore(ledger), announcer, settings.worker_name, settings.outage_timeout_s),
        ceilings=MemoryCeilings(CeilingStore(ledger, device_kind(settings.device))),
        load=load,
        worker=settings.worker_name,
        page=page,
        metrics=metrics,
    )


def _training_slot(settings: Settings, ledger: Ledger, page: SharedPage, metrics: ChildMetrics) -> TrainingSlot:
    """What runs training jobs; MissingExtra without what its trainers need."""
    missing = [name for name in TRAINERS_NEED if find_spec(name) is None]
    if missing:
        raise MissingExtra(f"training needs {', '.join(missing)}: pip install 'forebay[train]'")
    from forebay.worker.kinds.train.launch import Launcher
    from forebay.worker.kinds.train.outcomes import Outcomes
    from forebay.worker.kinds.train.slot import TrainingSlot

    blobs = BlobStore(settings.blobs, outage_timeout_s=settings.outage_timeout_s)
    jobs, announcer = JobStore(ledger), Announcer(connect_redis(settings))
    return TrainingSlot(
        settings,
        jobs=jobs,
        payloads=Payloads(blobs, settings),
        blobs=blobs,
        outcomes=Outcomes(jobs, announcer, settings.worker_name, settings.outage_timeout_s),
        launcher=Launcher(settings),
        dispatcher=Dispatcher(make_app(settings)),
        page=page,
        metrics=metrics,
    )


def device_kind(device: str) -> str:
    """What devices of this kind are called: batch sizes that fit on one fit on the others."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))[:100]
    return "cpu"


def default_budget(device: str, child_memory: int = 0) -> int:
    """How many bytes of the device its models may take up when nothing is configured."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory * CUDA_SHARE)
    total = psutil.virtual_memory().total
    return int(min(total, child_memory or total) * CPU_SHARE)
