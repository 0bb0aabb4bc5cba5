"""One worker process: a Celery parent that talks to Redis, with its children, for one device.

Started as `python -m forebay.worker`, with every setting in the environment; `forebay worker` starts one for each device.
"""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import ExitStack
from typing import Any

import structlog
from celery.signals import worker_shutdown, worker_shutting_down

from forebay.contract.errors import ForebayError
from forebay.contract.job import RUN_BYTES
from forebay.contract.logs import configure_logs
from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import connect_redis
from forebay.contract.wire.dispatch import Dispatcher
from forebay.datasets.formats.addresses import allow_hosts
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.workers import WorkerRegistry
from forebay.worker.announcer import Announcer
from forebay.worker.parent.celery.app import worker_app, worker_arguments
from forebay.worker.parent.celery.feeder import Feeder, InFlight
from forebay.worker.parent.celery.watchdog import Watchdog
from forebay.worker.parent.children import ChildMonitor
from forebay.worker.parent.context import ParentContext
from forebay.worker.parent.heartbeat import Heartbeat
from forebay.worker.parent.metrics import WorkerMetrics
from forebay.worker.parent.probes import Probes
from forebay.worker.parent.store_sweep import StoreSweepLoop
from forebay.worker.parent.sweep_loop import SweepLoop
from forebay.worker.parent.sweeper import Sweeper

log = structlog.get_logger()


def main() -> int:
    """`python -m forebay.worker QUEUES CHILDREN [SUPERVISOR]`: the worker stops when the process SUPERVISOR is gone."""
    settings = Settings.load(worker_queues=sys.argv[1], worker_run=secrets.token_hex(RUN_BYTES))
    os.environ.update(settings.as_environment())  # from which the children load theirs
    supervisor = int(sys.argv[3]) if len(sys.argv) > 3 else None
    try:
        return serve(settings, list(settings.worker_queues), int(sys.argv[2]), supervisor)
    except ForebayError as error:
        sys.stderr.write(f"forebay worker: {error}\n")
        return 1


def serve(settings: Settings, queues: list[str], children: int, supervisor: int | None = None) -> int:
    """Run this worker until SIGTERM, or until the process `supervisor` is gone; the exit status."""
    configure_logs(settings)
    allow_hosts(settings.allowed_hosts)
    app = worker_app(settings)
    ledger, broker = Ledger(settings.database), connect_redis(settings)
    store, monitor = JobStore(ledger), ChildMonitor(settings, supervisor)
    metrics, in_flight = WorkerMetrics(settings.device), InFlight()
    context = ParentContext(settings, store, WorkerRegistry(ledger), monitor, metrics)
    heartbeat = Heartbeat(context, tuple(queues), in_flight.ids)
    sweeps = SweepLoop(context, Sweeper(store, Dispatcher(app), Announcer(broker), broker, settings), heartbeat)
    app.forebay_feeder = feeder = Feeder(sweeps, in_flight, metrics, children)
    app.forebay_probes = probes = Probes(
        heartbeat, sweeps, ledger, connect_redis(settings), settings.alive_s, ledger_wait_s=monitor.ledger_wait_s
    )
    sweeps.after_sweep = Watchdog(feeder, broker, queues, settings.resend_s).check
    metrics.gauges["worker_children"] = lambda: probes.children

    def shut_down(**_: Any) -> None:
        monitor.shut_down()

    status = 0

    def note_status(sender: Any, **_: Any) -> None:
        nonlocal status
        status = sender.exitcode or 0  # Celery's own way loses it, as when its first child dies while it starts

    worker_shutting_down.connect(shut_down)
    worker_shutdown.connect(note_status)
    with ExitStack() as running:
        running.callback(ledger.close)
        running.callback(lambda: log.info("worker_stopped", worker=settings.worker_name))
        if settings.metrics_port:
            from forebay.worker.parent.metrics_server import MetricsServer

            server = MetricsServer(settings, metrics, probes)
            server.start()
            running.callback(server.stop)
        monitor.start()
        running.callback(monitor.stop)
        heartbeat.start()
        running.callback(heartbeat.stop)
        sweeps.start()
        running.callback(sweeps.stop)
        store_sweeps = StoreSweepLoop(context)
        store_sweeps.start()
        running.callback(store_sweeps.stop)
        log.info(
            "worker_starting",
            worker=settings.worker_name,
            device=settings.device,
            queues=",".join(queues),
            children=children,
        )
        try:
            app.worker_main(worker_arguments(settings, queues, children))
        except SystemExit as stop:
            return int(stop.code or 0)
    return status
