"""How waiting messages reach a child: an idle child gets what waits at once, a busy one lets it gather.

Messages of a model version go out together, as one task of the pool. Every message keeps its own ack, events and revoke:
Celery's requests are told what became of the task that carried them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import structlog
from billiard.einfo import ExceptionInfo
from celery import bootsteps
from celery.exceptions import TaskRevokedError
from celery.worker import state
from kombu.utils.uuid import uuid

from forebay.worker.parent.celery.app import run_in_child
from forebay.worker.parent.celery.buffer import MessageBuffer, ReceivedMessage
from forebay.worker.parent.metrics import WorkerMetrics
from forebay.worker.parent.sweep_loop import SweepLoop
from forebay.worker.task_report import TaskReport

log = structlog.get_logger()

IDS_PER_TASK = 1024

PREFETCH_S = 0.25  # of work that a parent holds: less leaves children idle, more is hoarded from other workers
PREFETCH_MIN, PREFETCH_MAX = 1, 32
PREFETCH_START = 4  # before anything was measured
NEWEST_WEIGHT = 0.3  # of the last task in the running means


class InFlight(dict[str, list[str]]):
    """The ids that each child's pool task holds now: those whose leases the parent renews. Any thread may ask."""

    def ids(self) -> list[str]:
        return [id for ids in list(self.values()) for id in ids]


class Feeder:
    """Holds the messages that wait and hands them to children. Lives as long as the process, across reconnects."""

    def __init__(self, reports: SweepLoop, in_flight: InFlight, metrics: WorkerMetrics, children: int = 1) -> None:
        self.reports, self.in_flight, self.metrics = reports, in_flight, metrics
        self.received, self.last_received = 0, time.monotonic()  # messages; when one last came or could have come
        self._buffer = MessageBuffer()
        self._prefetch = PrefetchEstimate(children)
        self._consumer: Any = None
        self._connected = False
        self._slot_requested = False
        metrics.gauges |= {"messages_held": lambda: len(self._buffer), "jobs_in_flight": lambda: len(in_flight.ids())}

    def attach(self, consumer: Any) -> None:
        """Called at every (re)connect: the pool's slots were counted afresh, and so is our request for one."""
        if self._consumer is not None:
            self.metrics.count("broker_outages_total")
        self._consumer = consumer
        self._slot_requested = False
        self._connected, self.last_received = True, time.monotonic()
        self._buffer.release_all()  # the timers went with the old connection
        self.request_slot()

    def detach(self) -> None:
        self._connected = False

    def reconnect(self) -> None:
        """Make Celery drop its connection and take a new one. Any thread may ask for it."""
        if self._consumer is not None:
            self._consumer.reconnect()

    @property
    def idle(self) -> bool:
        """Whether there is a connection, nothing waits here and no child works: a message would come in at once."""
        return self._connected and not (len(self._buffer) or self.in_flight.ids())

    def put(self, message: ReceivedMessage) -> None:
        """A message came in; its `batch_wait` keeps it back for a moment, so that more may come for the same batch."""
        self.received, self.last_received = self.received + 1, time.monotonic()
        state.task_reserved(message.request)
        wait = message.args.batch_wait
        if wait is None or message.args.exclusive:
            self._buffer.put(message)
            self.request_slot()
            return
        held = self._buffer.hold(message)
        if sum(len(m.args.ids) for m in held) >= wait.rows:
            self._release(message.key)
        elif len(held) == 1:
            self._consumer.timer.call_after(wait.seconds, self._release, (message.key,))

    def _release(self, key: Hashable) -> None:
        """A timer that comes late finds nothing, or lets the next messages go a little early."""
        self._buffer.release(key)
        self.request_slot()

    def request_slot(self) -> None:
        """Ask for a free child, once; what goes to it is decided when it is there."""
        if self._buffer.ready and not self._slot_requested:
            self._slot_requested = True
            self._consumer.on_task_request(PoolTask(self))

    def take(self) -> list[ReceivedMessage]:
        """What the child that is free now gets; nothing once the worker is shutting down: Celery gives that back."""
        self._slot_requested = False
        messages: list[ReceivedMessage] = []
        if self._consumer.blueprint.state == bootsteps.RUN:
            while not messages and (taken := self._buffer.take(IDS_PER_TASK)):
                messages = [m for m in taken if not m.request.revoked()]
        return messages

    def task_done(self, jobs: int, messages: int, report: TaskReport) -> None:
        """Celery's loop then fetches as many messages as that pace can use, and no more."""
        self.metrics.count("pool_task_seconds_total", by=report.seconds)
        self.metrics.add_child(report.pid, report.counts)
        self.metrics.add_served(report.served)
        self._prefetch.add(jobs, messages, report.seconds)
        if self._consumer.qos is not None:  # None while there is no connection
            self._consumer.qos.value = self._prefetch.messages()

    def give_back(self) -> None:
        """The worker stops: put back into Redis what no child has, in the order in which it came, for others to take."""
        messages = self._buffer.clear()
        not_sent: list[str] = []
        for message in reversed(messages):  # each goes to the front
            try:
                message.message.requeue()
                message.request.acknowledged = True
            except Exception as error:  # noqa: BLE001 - no connection, or acknowledged by a reconnect
                log.debug("message_not_returned", message=message.request.id, error=str(error))
                not_sent += message.args.ids
        if messages:
            log.info("buffer_returned", messages=len(messages), jobs=sum(len(m.args.ids) for m in messages))
        if not_sent:
            self.reports.jobs_returned(not_sent)


class PoolTask:
    """Stands in for Celery's Request in `consumer.on_task_request`: takes its messages when a slot is really free."""

    def __init__(self, feeder: Feeder) -> None:
        self._feeder = feeder
        self._key = str(uuid())
        self._requests: list[Any] = []
        self._ids: list[str] = []
        self._child_pid = 0

    def execute_using_pool(self, pool: Any, **_: Any) -> Any:
        """Called by Celery with the slot; TaskRevokedError gives it back."""
        messages = self._feeder.take()
        if not messages:
            raise TaskRevokedError("nothing waits")
        self._ids = list(dict.fromkeys(id for message in messages for id in message.args.ids))
        self._requests = [message.request for message in messages]
        model, version = messages[0].args.model, messages[0].args.version
        if version == 0:  # one that a training job is to make
            self._feeder.metrics.begin_training(model)
        result = pool.apply_async(
            run_in_child,
            args=(model, version, self._ids),
            accept_callback=self._accepted,
            callback=self._done,
            error_callback=self._lost,
            correlation_id=self._key,
        )
        self._feeder.request_slot()  # for the next one
        return result

    def _accepted(self, pid: int, at: float) -> None:
        self._child_pid = pid
        # Not earlier: at a reconnect Celery drops, without a callback, what no child has begun.
        self._feeder.in_flight[self._key] = self._ids
        # This acknowledges too: now the ledger answers for the jobs.
        _tell(self._requests, lambda r: r.on_accepted(pid, at))

    def _done(self, report: TaskReport) -> None:
        self._feeder.in_flight.pop(self._key, None)
        self._feeder.metrics.count("pool_tasks_total", "failed" if report.failed else "done")
        if report.failed:
            error = _error_info(report.summary)
            _tell(self._requests, lambda r: r.on_failure(error, return_ok=True))
        else:
            _tell(self._requests, lambda r: r.on_success((False, report.summary, report.seconds)))
        self._feeder.task_done(len(self._ids), len(self._requests), report)
        if report.released:
            self._feeder.reports.jobs_returned(list(report.released))

    def _lost(self, einfo: ExceptionInfo) -> None:
        self._feeder.in_flight.pop(self._key, None)
        self._feeder.metrics.count("pool_tasks_total", "lost")
        reason = str(getattr(einfo.exception, "exc", einfo.exception))  # without billiard's traceback around it
        self._feeder.reports.child_lost(self._ids, reason, self._child_pid)
        _tell(self._requests, lambda r: r.on_failure(einfo))


class PoolTaskFailed(Exception):
    """A child could not even claim its jobs; they stay queued, and a sweep sends them again."""


class PrefetchEstimate:
    """How many messages a parent should hold: about a quarter of a second of work for its children, whatever a job costs."""

    def __init__(self, children: int = 1) -> None:
        self._children = children
        self._seconds_per_job = 0.0
        self._jobs_per_message = 1.0

    def add(self, jobs: int, messages: int, seconds: float) -> None:
        """A child did so many jobs, which came in so many messages, in this time."""
        if jobs < 1 or messages < 1:
            return
        weight = NEWEST_WEIGHT if self._seconds_per_job else 1.0
        self._seconds_per_job += weight * (seconds / jobs - self._seconds_per_job)
        self._jobs_per_message += weight * (jobs / messages - self._jobs_per_message)

    def messages(self) -> int:
        """How many messages to hold beside those the children work on."""
        if self._seconds_per_job == 0.0:
            return PREFETCH_START
        seconds_per_message = max(1e-9, self._seconds_per_job * self._jobs_per_message)
        return int(min(PREFETCH_MAX, max(PREFETCH_MIN, self._children * PREFETCH_S / seconds_per_message)))


def _tell(requests: Sequence[Any], action: Callable[[Any], object]) -> None:
    """Tell each request; an error in one is logged and does not starve the others, nor end Celery's loop."""
    for request in requests:
        try:
            action(request)
        except Exception:
            log.exception("message_callback_failed", message=request.id)


def _error_info(summary: str) -> ExceptionInfo:
    """A failed task in the form in which Celery's requests take it."""
    try:
        raise PoolTaskFailed(summary)
    except PoolTaskFailed:
        return ExceptionInfo()
