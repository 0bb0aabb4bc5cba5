"""One worker process: a Celery parent that talks to Redis, with its children, for one device.

Started as `python -m forebay.worker`, with every setting in the environment; `forebay worker` starts one for each device.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import structlog
from celery import Celery, Task
from celery.signals import setup_logging, worker_process_init, worker_shutting_down
from celery.worker.control import Panel

from forebay.contract.errors import ForebayError
from forebay.contract.logs import configure_logs
from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import connect_redis, make_app
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import PREDICT_TASK
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.workers import WorkerRegistry
from forebay.worker.announcer import Announcer
from forebay.worker.child import process as child
from forebay.worker.parent.celery.feeder import Feeder
from forebay.worker.parent.celery.transport import install
from forebay.worker.parent.celery.watchdog import Watchdog
from forebay.worker.parent.children import Children
from forebay.worker.parent.housekeeper import Housekeeper
from forebay.worker.parent.metrics import WorkerMetrics
from forebay.worker.parent.probes import Probes
from forebay.worker.parent.sweeper import Sweeper

if TYPE_CHECKING:
    from forebay.worker.parent.metrics_server import MetricsServer

log = structlog.get_logger()

# What anyone who can reach Redis may ask of a worker: to be looked at. Celery's other commands (shutdown, revoke, adding
# queues, changing the pool) are taken out of the panel; jobs are canceled through the ledger.
ALLOWED_CONTROL = frozenset(
    {"ping", "stats", "active", "reserved", "scheduled", "revoked", "registered", "active_queues", "query_task",
     "clock", "conf", "report", "enable_events", "heartbeat"}
)  # fmt: skip

CHILD_START_S = 120  # importing torch in a fresh interpreter, on a slow disk


class PredictTask(Task):
    """Carries job_messages; its Strategy hands them to children, so its body never runs."""

    abstract = True
    Strategy = "forebay.worker.parent.celery.strategy:gather"
    acks_late = False  # acknowledged when a child has taken it: from then on the ledger answers for its jobs
    ignore_result = True


def serve(settings: Settings, queues: list[str], concurrency: int, supervisor: int | None = None) -> int:
    """Run this worker until SIGTERM, or until the process `supervisor` is gone; the exit status."""
    configure_logs(settings)
    app = worker_app(settings)
    ledger = Ledger(settings.database)
    store, dispatcher, broker = JobStore(ledger), Dispatcher(app), connect_redis(settings)
    sweeper = Sweeper(store, dispatcher, Announcer(broker), broker, settings)
    children = Children(settings, supervisor)
    housekeeper = Housekeeper(settings, tuple(queues), store, WorkerRegistry(ledger), sweeper, children)
    app.forebay_feeder = feeder = Feeder(
        housekeeper.child_lost, housekeeper.jobs_left, concurrency, housekeeper.metrics
    )
    housekeeper.in_flight = feeder.in_flight
    probes = Probes(housekeeper, ledger, connect_redis(settings), settings.heartbeat_s)
    app.forebay_turned = probes.turned
    housekeeper.metrics.gauges["worker_children"] = lambda: probes.children
    server = _metrics_server(settings, housekeeper.metrics, probes)
    housekeeper.each_sweep = Watchdog(feeder, broker, queues, settings.resend_s).look

    def _shut_down(**_: Any) -> None:
        children.shut_down()

    worker_shutting_down.connect(_shut_down)
    children.start()
    housekeeper.start()
    log.info(
        "worker_starting",
        worker=settings.worker_name,
        device=settings.device,
        queues=",".join(queues),
        children=concurrency,
    )
    try:
        app.worker_main(_arguments(settings, queues, concurrency))
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        housekeeper.stop()
        if server is not None:
            server.stop()
        children.stop()
        log.info("worker_stopped", worker=settings.worker_name)
        ledger.close()
    return 0


def _metrics_server(settings: Settings, metrics: WorkerMetrics, probes: Probes) -> MetricsServer | None:
    """Answering already, when a port is set."""
    if not settings.metrics_port:
        return None
    from forebay.worker.parent.metrics_server import MetricsServer

    server = MetricsServer(settings, metrics, probes)
    server.start()
    return server


def worker_app(settings: Settings) -> Celery:
    """The Celery app of a worker: the tasks it takes, and none of those that come with Celery."""
    install()
    app = make_app(settings)
    app.conf.update(
        worker_proc_alive_timeout=CHILD_START_S,
        worker_consumer="forebay.worker.parent.celery.consumer:Consumer",
        imports=("forebay.worker.parent.app",),  # so that a spawned child connects the signals below
    )
    if settings.trains_only:
        app.conf.worker_prefetch_multiplier = 1  # what waits here waits for days, while another worker may be idle
    app.task(_unreachable, name=PREDICT_TASK, base=PredictTask)
    app.finalize()
    for name in [name for name in app.tasks if name != PREDICT_TASK]:
        app.tasks.unregister(name)
    for name in set(Panel.data) - ALLOWED_CONTROL:
        Panel.data.pop(name, None)
        Panel.meta.pop(name, None)
    return app


def _unreachable(*_: Any) -> None:
    """Messages are run by the Strategy; a direct call has nothing to do."""


def _arguments(settings: Settings, queues: list[str], concurrency: int) -> list[str]:
    return [
        "--quiet", "worker", "--pool=prefork", f"--concurrency={concurrency}", f"--hostname={settings.worker_name}",
        f"--queues={','.join(queues)}", f"--loglevel={settings.log_level}", "--without-gossip", "--without-mingle",
        "--task-events",
    ]  # fmt: skip


@setup_logging.connect
def _keep_our_logs(**_: Any) -> None:
    """Celery would configure logging itself; configure_logs has done so."""


@worker_process_init.connect
def _start_child(**_: Any) -> None:
    try:
        child.start()
    except Exception:
        log.exception("child_failed")
        raise SystemExit(1) from None  # Celery would log any other error and let the child take jobs that it cannot run


def main() -> int:
    """`python -m forebay.worker QUEUES CONCURRENCY [SUPERVISOR]`; without that process the worker stops."""
    settings = Settings.load(worker_queues=sys.argv[1])
    os.environ.update(settings.as_environment())  # whence the children load theirs
    supervisor = int(sys.argv[3]) if len(sys.argv) > 3 else None
    try:
        return serve(settings, list(settings.worker_queues), int(sys.argv[2]), supervisor)
    except ForebayError as error:
        sys.stderr.write(f"forebay worker: {error}\n")
        return 1
