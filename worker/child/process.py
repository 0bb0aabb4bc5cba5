"""The child process: owns the device and its models, and runs what the parent hands over.

`start` runs once in a fresh interpreter (spawned, never forked); `run_and_report` is the pool's target.
"""

from __future__ import annotations

import gc
import os
import resource
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import psutil
import structlog

from forebay.contract.drift.sketch import Served
from forebay.contract.errors import MissingExtra
from forebay.contract.logs import configure_logs
from forebay.contract.metrics.statistics import Statistics
from forebay.contract.model import ModelVersion
from forebay.contract.places import ARTIFACTS
from forebay.contract.settings import Settings
from forebay.contract.signature import Row
from forebay.contract.wire import codec
from forebay.contract.wire.celery_app import connect_redis
from forebay.datasets.formats.addresses import allow_hosts
from forebay.storage.blobs.store import BlobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.ceilings import CeilingStore
from forebay.storage.models.registry import ModelRegistry
from forebay.worker.child.runner import Runner
from forebay.worker.execution.ceilings import MemoryCeilings, device_kind
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.model_cache import Artifacts, ModelCache
from forebay.worker.execution.retrying import retry_while_unavailable, waiting_since
from forebay.worker.shared_page import SharedPage, attach_to_parent
from forebay.worker.task_report import TaskReport

log = structlog.get_logger()

CPU_SHARE, CUDA_SHARE = 0.5, 0.85  # of the device's memory, for models and what they run on
TELL_S = 1.0  # between two words to the parent about calls to the ledger
MEMORY_SHARE = 0.8  # of the machine's memory, for one child at most
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

_runner: Runner | None = None


def start() -> None:
    """Build this child's runner from the settings it inherited, and import what its first jobs will need.

    A child that only trains needs nothing: its trainers are processes of their own, and the device is theirs.
    """
    global _runner
    settings = Settings.load()
    page = attach_to_parent(settings.home)  # before all else: a death while torch is imported is told too
    configure_logs(settings)
    allow_hosts(settings.allowed_hosts)
    if not settings.trains_only:
        bound_memory(settings.child_memory_bytes)
        if not settings.remote_only:
            preload(settings)
    context = make_context(settings, page)
    threading.Thread(target=_tell_waits, args=(page, context.ledger), name="ledger waits", daemon=True).start()
    _runner = Runner(context)
    log.info(
        "child_ready",
        worker=settings.worker_name,
        device=settings.device,
        pid=os.getpid(),
        threads=settings.torch_threads,
    )


def _tell_waits(page: SharedPage, ledger: Ledger) -> None:
    """So that the parent's health has in it what a child waits for."""
    while True:
        page.wait_for_ledger(min(filter(None, (ledger.waiting_since(), waiting_since())), default=0.0))
        time.sleep(TELL_S)


def make_context(settings: Settings, page: SharedPage) -> ChildContext:
    """What the handlers of a child with these settings share."""
    device = "cpu" if settings.trains_only else settings.device
    ledger = Ledger(settings.database, settle_s=settings.outage_timeout_s)
    blobs = BlobStore(settings.blobs)
    metrics = ChildMetrics(device)
    cache = ModelCache(
        settings.model_cache_bytes or default_budget(device, settings.child_memory_bytes),
        Artifacts(blobs, settings.home / ARTIFACTS).fetch,
        device,
        settings.allowed_python_models,
        metrics=metrics,
        example=partial(_example, ModelRegistry(ledger), settings.outage_timeout_s),
    )
    ceilings = MemoryCeilings(CeilingStore(ledger, device_kind(device)))
    return ChildContext(settings, ledger, blobs, connect_redis(settings), page, metrics, ceilings, cache)


def _example(registry: ModelRegistry, wait_s: float, spec: ModelVersion) -> Row | None:
    data = retry_while_unavailable(partial(registry.example, spec.name, spec.version), wait_s)
    return None if data is None else codec.decode(data)


def preload(settings: Settings) -> None:
    """Import the modules that the settings name; MissingExtra for one that is not here."""
    if settings.torch_threads:
        os.environ["OMP_NUM_THREADS"] = str(
            settings.torch_threads
        )  # which torch reads when it is imported, now or later
    for name in settings.preload:
        try:
            import_module(name)
        except ImportError as error:
            why = f"setting preload names {name!r}, which cannot be imported ({error})"
            if name == "torch":
                raise MissingExtra(why, "worker") from error
            raise MissingExtra(f"{why}: install it, or leave it out of FOREBAY_PRELOAD") from error


def run_and_report(model: str, version: int, ids: Sequence[str]) -> TaskReport:
    """The pool's target: run jobs, and say how it went. Never raises: the pool would lose the messages."""
    started, failed, released = time.monotonic(), False, tuple[str, ...]()
    try:
        if _runner is None:
            start()
        assert _runner is not None  # noqa: S101 - start() sets it or raises
        loads = _runner.loads
        if not ids:  # an empty job_message: `forebay models warm`
            _runner.warm(model, version)
        done = _runner.run(ids)
        summary, released = str(done), done.released
        if _runner.loads > loads:
            spare_collector()
    except Exception as error:  # the jobs keep their leases; the sweeper frees what stays running
        log.exception("pool_task_failed", model=f"{model}/{version}", jobs=len(ids))
        failed, summary = True, f"{type(error).__name__}: {error}"
    return TaskReport(summary, time.monotonic() - started, failed, released, os.getpid(), *_counts())


def spare_collector() -> None:
    """Have the garbage collector leave alone what is there to stay: a look at all that torch and a model have made takes it
    200 ms, again and again while jobs come and go. `release_memory` has it look once more.
    """  # fmt: skip
    gc.collect()
    gc.freeze()


def _counts() -> tuple[Statistics, tuple[Served, ...]]:
    """What this child has counted and sketched since its last report."""
    try:
        return (Statistics(), ()) if _runner is None else _runner.report()
    except Exception:  # what cannot be counted must not cost the messages
        log.exception("report_failed")
        return Statistics(), ()


def bound_memory(limit: int) -> None:
    """Let this process take no more than `limit` bytes of private writable memory: what asks for more gets a MemoryError.

    Not the address space: CUDA reserves far more of that than it ever uses. 0 is MEMORY_SHARE of the machine's memory, or of the
    container's.
    """
    limit = limit or int(_memory() * MEMORY_SHARE)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _memory() -> int:
    """What this process may have at most: the machine's memory, or less where a control group has a limit."""
    total = int(psutil.virtual_memory().total)
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # "max": no limit
            total = min(total, int(path.read_text()))
    return total


def default_budget(device: str, child_memory: int = 0) -> int:
    """How many bytes of the device its models may take up when nothing is configured."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory * CUDA_SHARE)
    total = _memory()
    return int(min(total, child_memory or total) * CPU_SHARE)
