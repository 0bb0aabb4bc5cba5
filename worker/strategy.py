"""How the parent turns Celery messages into work for a child: a task Strategy that lets envelopes gather while it is busy.

An idle child gets what waits at once; while it is busy, envelopes of a model version gather and go out together. Every
message keeps its own ack, events and revoke. Celery's side of the contract is that of `Task.Strategy` and of
`consumer.on_task_request`; what the envelopes mean is the runner's business.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from billiard.einfo import ExceptionInfo
from celery import bootsteps, signals
from celery.exceptions import InvalidTaskError, TaskRevokedError
from celery.utils.imports import symbol_by_name
from celery.worker import state
from celery.worker.request import create_request_cls
from kombu.utils.uuid import uuid

from forebay.contract.errors import InvalidInput
from forebay.contract.messages import check_args
from forebay.worker import child
from forebay.worker.batcher import Waiting

log = structlog.get_logger()

HAND_OVER = 1024  # ids a child gets at once
CHECK_CHILDREN_S = 0.5  # Celery may miss the moment a child dies, and would look again after 5 s

# Celery's Request acts on these or trips over odd values of them; the dispatcher sets none.
UNUSED_HEADERS = ("eta", "expires", "shadow", "group", "stamped_headers", "stamps")
NO_LIMIT: tuple[Any, ...] = (None, [], [None, None])

Lost = Callable[[list[str], str], None]


@dataclass(frozen=True, slots=True)
class Parcel:
    """One message as it waits: Celery's request and the envelope's content."""

    request: Any
    model: str
    version: int
    ids: list[str]
    priority: int
    solo: bool

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

    def __init__(self, on_lost: Lost) -> None:
        self.in_flight = InFlight()
        self._waiting: dict[int, Waiting[Parcel]] = {}  # by priority
        self._consumer: Any = None
        self._asked = False
        self._on_lost = on_lost

    def attach(self, consumer: Any) -> None:
        """Called at every (re)connect: the pool's slots were counted afresh, and so is our asking for one."""
        self._consumer = consumer
        self._asked = False
        self._ask()

    def put(self, parcel: Parcel) -> None:
        """A message came in."""
        state.task_reserved(parcel.request)
        self._waiting.setdefault(parcel.priority, Waiting()).put(parcel.key, parcel, len(parcel.ids))
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

    def handed_over(self) -> None:
        """The child has its work; ask for the next one."""
        self._ask()

    def lost(self, ids: list[str], reason: str) -> None:
        """A child died with these."""
        self._on_lost(ids, reason)


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

        def done(result: Any) -> None:
            feeder.in_flight.remove(key)
            failed, words, _ = result
            einfo = _error_info(words) if failed else None
            _each(requests, lambda r: r.on_success(result) if einfo is None else r.on_failure(einfo, return_ok=True))

        def lost(einfo: ExceptionInfo) -> None:
            feeder.in_flight.remove(key)
            feeder.lost(ids, _reason(einfo))
            _each(requests, lambda r: r.on_failure(einfo))

        def accepted(pid: int, at: float) -> None:
            feeder.in_flight.add(key, ids)  # not earlier: at a reconnect Celery drops, unheard, what no child has begun
            _each(requests, lambda r: r.on_accepted(pid, at))  # also acknowledges: now the ledger answers for the jobs

        result = pool.apply_async(
            child.run_ids,
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


def gather(task: Any, app: Any, consumer: Any) -> Callable[..., None]:
    """The Strategy of forebay.predict."""
    feeder: Feeder = app.forebay_feeder
    events = consumer.event_dispatcher
    request_class = create_request_cls(
        symbol_by_name(task.Request), task, consumer.pool, consumer.hostname, events, app=app
    )
    revoked = consumer.controller.state.revoked

    def handler(message: Any, _body: Any, ack: Any, reject: Any, callbacks: Any, **_: Any) -> None:
        args = _read(message)
        request = request_class(
            message, on_ack=ack, on_reject=reject, app=app, hostname=consumer.hostname, eventer=events, task=task,
            connection_errors=consumer.connection_errors, body=message.body, headers=message.headers, decoded=False,
            utc=app.uses_utc_timezone(),
        )  # fmt: skip
        if (request.expires or request.id in revoked) and request.revoked():
            return
        signals.task_received.send(sender=consumer, request=request)
        request.send_event(
            "task-received", name=request.name, args=request.argsrepr, kwargs=request.kwargsrepr, root_id=request.root_id,
            parent_id=request.parent_id, retries=0, eta=None, expires=None,
        )  # fmt: skip
        for callback in callbacks or ():
            callback(request)
        model, version, ids, solo = args
        feeder.put(Parcel(request, model, version, ids, _priority(message), solo))

    consumer.hub.call_repeatedly(CHECK_CHILDREN_S, consumer.pool.maintain_pool)  # until the next reconnect
    feeder.attach(consumer)
    return handler


def _read(message: Any) -> tuple[str, int, list[str], bool]:
    """The envelope in a message; InvalidTaskError, which Celery rejects and survives, for anything else."""
    try:
        asked = [name for name in UNUSED_HEADERS if message.headers.get(name)]
        if asked or message.headers.get("timelimit") not in NO_LIMIT:
            raise InvalidInput(f"an envelope carries no {', '.join(asked) or 'timelimit'}")
        args, kwargs, embed = message.payload
        if kwargs or any(embed.values()):
            raise InvalidInput("an envelope has no keyword arguments, callbacks or chords")
        return check_args(args)
    except (InvalidInput, AttributeError, TypeError, ValueError, KeyError) as error:
        raise InvalidTaskError(f"no envelope of ours: {error}") from error


def _priority(message: Any) -> int:
    priority = message.properties.get("priority")
    return priority if type(priority) is int and 0 <= priority <= 9 else 0
