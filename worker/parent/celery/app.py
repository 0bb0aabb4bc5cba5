"""The worker's Celery app: the one task it takes, what its remote control answers, and what runs in its children.

A child imports this module too. It names what runs models by path, so that the parent never imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from celery import Celery, Task
from celery.signals import setup_logging, worker_process_init
from celery.utils.imports import symbol_by_name
from celery.worker.control import Panel

from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import make_app
from forebay.contract.wire.messages import PREDICT_TASK
from forebay.worker.parent.celery.transport import install

log = structlog.get_logger()

CHILD_START = "forebay.worker.child.process:start"
CHILD_RUN = "forebay.worker.child.process:run_and_report"
CHILD_START_S = 120  # importing torch in a fresh interpreter, on a slow disk

# What anyone who can reach Redis may ask of a worker: to be looked at. Celery's other commands (shutdown, revoke, adding
# queues, changing the pool) are taken out of the panel; jobs are canceled through the ledger.
ALLOWED_CONTROL = frozenset(
    {"ping", "stats", "active", "reserved", "scheduled", "revoked", "registered", "active_queues", "query_task",
     "clock", "conf", "report", "enable_events", "heartbeat"}
)  # fmt: skip


class PredictTask(Task):
    """Carries job ids. Its Strategy hands them to children, so its body never runs."""

    abstract = True
    Strategy = "forebay.worker.parent.celery.strategy:make_handler"
    acks_late = False  # acknowledged when a child has taken it: from then on the ledger answers for its jobs
    ignore_result = True


def worker_app(settings: Settings) -> Celery:
    """The Celery app of a worker: the tasks it takes, and none of those that come with Celery."""
    install()
    app = make_app(settings)
    app.events_cls = "forebay.worker.parent.celery.consumer:Events"
    app.conf.update(
        worker_proc_alive_timeout=CHILD_START_S,
        worker_consumer="forebay.worker.parent.celery.consumer:Consumer",
        broker_channel_error_retry=True,  # what Redis refuses must not end the process
        imports=(__name__,),  # so that a spawned child connects the signals below
    )
    if settings.trains_only:
        app.conf.worker_prefetch_multiplier = 1  # what waits here waits for days, while another worker may be idle
    app.task(_body, name=PREDICT_TASK, base=PredictTask)
    app.finalize()
    for name in [name for name in app.tasks if name != PREDICT_TASK]:
        app.tasks.unregister(name)
    for name in set(Panel.data) - ALLOWED_CONTROL:
        Panel.data.pop(name, None)
        Panel.meta.pop(name, None)
    return app


def _body(*_: Any) -> None: ...


def worker_arguments(settings: Settings, queues: Sequence[str], children: int) -> list[str]:
    return [
        "--quiet", "worker", "--pool=prefork", f"--concurrency={children}", f"--hostname={settings.worker_name}",
        f"--queues={','.join(queues)}", f"--loglevel={settings.log_level}", "--without-gossip", "--without-mingle",
        "--task-events",
    ]  # fmt: skip


def run_in_child(model: str, version: int, ids: Sequence[str]) -> Any:  # a TaskReport
    return symbol_by_name(CHILD_RUN)(model, version, ids)


@setup_logging.connect
def _keep_our_logs(**_: Any) -> None:
    """Celery would configure logging itself; configure_logs has done so."""


@worker_process_init.connect
def _start_child(**_: Any) -> None:
    try:
        symbol_by_name(CHILD_START)()
    except Exception:
        log.exception("child_failed")
        raise SystemExit(1) from None  # Celery would log any other error and let the child take jobs that it cannot run
