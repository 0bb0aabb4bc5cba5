"""What waits in the parent and how it reaches a child: an idle child gets what waits at once, a busy one lets it gather.

Messages of a model version go out together. Every message keeps its own ack, events and revoke: Celery's requests are told
what became of the hand-over that carried them. Celery's side is the contract of `consumer.on_task_request`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from billiard.einfo import ExceptionInfo
from celery import bootsteps
from celery.exceptions import TaskRevokedError
from celery.worker import state
from kombu.utils.uuid import uuid

from forebay.contract.wire.messages import BatchWait
from forebay.worker.child import process as child
from forebay.worker.execution.batcher import Waiting
from forebay.worker.parent.celery.pace import Pace
from forebay.worker.parent.metrics import WorkerMetrics

log = structlog.get_logger()

HAND_OVER = 1024  # ids a child gets at once

Lost = Callable[[list[str], str, int], None]
Left = Callable[[list[str]], None]


@dataclass(frozen=True, slots=True)
class Parcel:
    """One message as it waits: Celery's request and the job_message's content."""

    request: Any
    model: str
    version: int
    ids: list[str]
    priority: int
    solo: bool
    message: Any = None  # kombu's, to put back

    @property
    def key(self) -> Hashable:
        """What shares a hand-over. A solo one shares none."""
        return ("solo", self.request.id) if self.solo else (self.model, self.version)


class HandOverFailed(Exception):
    """A child could not even claim its jobs; they stay queued, and a sweep sends them again."""


class InFlight:
    """The ids that the children hold now: those whose leases the parent renews. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, list[str]] = {}

    def ids(self) -> list[str]:
        """Every id that a child has begun with and not yet reported back."""
        with self._lock:
            return [id for ids in self._held.values() for id in ids]

    def add(self, key: str, ids: list[str]) -> None:
        """A child has begun with these; `key` is to remove them by."""
        with self._lock:
            self._held[key] = ids

    def remove(self, key: str) -> None:
        """The hand-over has been reported back."""
        with self._lock:
            self._held.pop(key, None)


class Feeder:
    """Holds the parcels that wait and hands them to children. Lives as long as the process, across reconnects."""

    def __init__(
        self, on_lost: Lost, on_left: Left = lambda _: None, children: int = 1, metrics: WorkerMetrics | None = None
    ) -> None:
        self.in_flight = InFlight()
        self.metrics = metrics or WorkerMetrics()
        self.metrics.gauges |= {"messages_held": self.held, "jobs_in_flight": lambda: len(self.in_flight.ids())}
        self._pace = Pace(children)
        self._held: dict[Hashable, list[Parcel]] = {}
        self._waiting: dict[int, Waiting[Parcel]] = {}  # by priority
        self._consumer: Any = None
        self._asked = False
        self._on_lost = on_lost
        self._on_left = on_left
        self.heard, self.heard_at = 0, time.monotonic()  # messages, and when the last came or could have come
        self._attached = False

    def attach(self, consumer: Any) -> None:
        """Called at every (re)connect: the pool's slots were counted afresh, and so is our asking for one."""
        if self._consumer is not None:
            self.metrics.count("broker_outages_total")
        self._consumer = consumer
        self._asked = False
        self._attached, self.heard_at = True, time.monotonic()
        for key in list(self._held):  # its timer went with the old connection
            self._let_go(key)
        self._ask()

    def put(self, parcel: Parcel, hold: BatchWait | None = None) -> None:
        """A message came in; `hold` keeps it back for a moment, so that more may come for the same batch."""
        self.heard, self.heard_at = self.heard + 1, time.monotonic()
        state.task_reserved(parcel.request)
        if hold is None or parcel.solo:
            self._queue(parcel)
            self._ask()
            return
        held = self._held.setdefault(parcel.key, [])
        held.append(parcel)
        if sum(len(p.ids) for p in held) >= hold.rows:
            self._let_go(parcel.key)
        elif len(held) == 1:
            self._consumer.timer.call_after(hold.seconds, self._let_go, (parcel.key,))

    def held(self) -> int:
        """How many messages wait here. Any thread may ask; the answer may be a moment old."""
        return sum(map(len, list(self._waiting.values()))) + sum(map(len, list(self._held.values())))

    def _queue(self, parcel: Parcel) -> None:
        self._waiting.setdefault(parcel.priority, Waiting()).put(parcel.key, parcel, len(parcel.ids))

    def _let_go(self, key: Hashable) -> None:
        """What was held may run; a timer that comes late finds nothing, or lets its successors go a little early."""
        for parcel in self._held.pop(key, ()):
            self._queue(parcel)
        self._ask()

    def _ask(self) -> None:
        """Ask for a free child, once; what goes to it is decided when it is there."""
        if any(self._waiting.values()) and not self._asked:
            self._asked = True
            self._consumer.on_task_request(HandOver(self))

    def take(self) -> list[Parcel]:
        """What the child that is free now gets; nothing once the worker is shutting down: Celery gives that back."""
        self._asked = False
        parcels: list[Parcel] = []
        if self._consumer.blueprint.state == bootsteps.RUN:
            for _, waiting in sorted(self._waiting.items()):  # 0 comes first
                while waiting and not parcels:
                    parcels = [p for p in waiting.take(HAND_OVER) if not p.request.revoked()]
        return parcels

    @property
    def idle(self) -> bool:
        """Whether there is a connection, nothing waits here and no child works: a message would be heard at once."""
        return self._attached and not (self._held or any(self._waiting.values()) or self.in_flight.ids())

    def detach(self) -> None:
        """The connection is lost."""
        self._attached = False

    def reconnect(self) -> None:
        """Make Celery drop its connection and take a new one. Any thread may ask for it."""
        if self._consumer is not None:
            self._consumer.reconnect()

    def give_back(self) -> None:
        """The worker stops: put back into Redis what no child has, in the order in which it came, for others to take."""
        waiting = [parcel for _, line in sorted(self._waiting.items()) for parcel in line.clear()]
        parcels = [*waiting, *(parcel for held in self._held.values() for parcel in held)]
        self._held.clear()
        unsent: list[str] = []
        for parcel in reversed(parcels):  # each goes to the front
            try:
                parcel.message.requeue()
                parcel.request.acknowledged = True
            except Exception as error:  # noqa: BLE001 - no connection, or acknowledged by a reconnect
                log.debug("message_not_put_back", message=parcel.request.id, error=str(error))
                unsent += parcel.ids
        if parcels:
            log.info("buffer_returned", messages=len(parcels), jobs=sum(len(p.ids) for p in parcels))
        if unsent:
            self._on_left(unsent)

    def handed_over(self) -> None:
        """The child has its work; ask for the next one."""
        self._ask()

    def done(self, jobs: int, messages: int, seconds: float, counted: Mapping[str, Any] | None = None) -> None:
        """A child did this; Celery's loop then fetches as many messages as that pace can use, and no more."""
        self.metrics.count("hand_over_seconds_total", by=seconds)
        self.metrics.told(counted or {})
        self._pace.note(jobs, messages, seconds)
        if self._consumer.qos is not None:  # None while there is no connection
            self._consumer.qos.value = self._pace.messages()

    def lost(self, ids: list[str], reason: str, pid: int) -> None:
        """A child died with these."""
        self._on_lost(ids, reason, pid)

    def left(self, ids: list[str]) -> None:
        """A child gave these back unrun."""
        self._on_left(ids)


class HandOver:
    """Stands in for a Request in consumer.on_task_request: picks its parcels when a pool slot is really free."""

    def __init__(self, feeder: Feeder) -> None:
        self._feeder = feeder

    def execute_using_pool(self, pool: Any, **_: Any) -> Any:
        """Called by Celery with the slot; TaskRevokedError gives it back."""
        feeder = self._feeder
        parcels = feeder.take()
        if not parcels:
            raise TaskRevokedError("nothing waits")
        ids = list(dict.fromkeys(id for p in parcels for id in p.ids))
        requests = [p.request for p in parcels]
        key = str(uuid())
        child_pid = 0

        def done(told: Any) -> None:
            feeder.in_flight.remove(key)
            result, counted = told
            failed, words, seconds, left = result
            feeder.metrics.count("hand_overs_total", "failed" if failed else "done")
            einfo = _error_info(words) if failed else None
            _each(
                requests, lambda r: r.on_success(result[:3]) if einfo is None else r.on_failure(einfo, return_ok=True)
            )
            feeder.done(len(ids), len(requests), seconds, counted)
            if left:
                feeder.left(left)

        def lost(einfo: ExceptionInfo) -> None:
            feeder.in_flight.remove(key)
            feeder.metrics.count("hand_overs_total", "lost")
            feeder.lost(ids, _reason(einfo), child_pid)
            _each(requests, lambda r: r.on_failure(einfo))

        def accepted(pid: int, at: float) -> None:
            nonlocal child_pid
            child_pid = pid
            feeder.in_flight.add(key, ids)  # not earlier: at a reconnect Celery drops, unheard, what no child has begun
            _each(requests, lambda r: r.on_accepted(pid, at))  # also acknowledges: now the ledger answers for the jobs

        result = pool.apply_async(
            child.run_and_report,
            args=(parcels[0].model, parcels[0].version, ids),
            accept_callback=accepted,
            callback=done,
            error_callback=lost,
            correlation_id=key,
        )
        feeder.handed_over()
        return result


def _each(requests: Sequence[Any], action: Callable[[Any], object]) -> None:
    """Tell each request; an error in one is logged and does not starve the others, nor end Celery's loop."""
    for request in requests:
        try:
            action(request)
        except Exception:
            log.exception("message_callback_failed", message=request.id)


def _reason(einfo: ExceptionInfo) -> str:
    """What became of the child, without the traceback that billiard wraps around it."""
    return str(getattr(einfo.exception, "exc", einfo.exception))


def _error_info(words: str) -> ExceptionInfo:
    """A failed hand-over as Celery wants it told."""
    try:
        raise HandOverFailed(words)
    except HandOverFailed:
        return ExceptionInfo()
