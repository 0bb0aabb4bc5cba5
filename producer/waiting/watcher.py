"""Waiting for jobs to end: one thread and one Redis subscription for all of a client's handles.

The workers announce finished ids on the client's channel; the thread then reads those jobs from the ledger in bulk. The
ledger is also polled, so a lost announcement, or no Redis at all, costs time and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar, cast
from weakref import WeakValueDictionary

import msgspec
import redis
import structlog

from forebay.contract.errors import ForebayError, LedgerUnavailable
from forebay.contract.wire.held_connection import Subscription
from forebay.contract.wire.messages import TextPiece, announce_channel, text_channel
from forebay.storage.jobs.records import Outcome
from forebay.storage.jobs.store import JobStore

log = structlog.get_logger()

FIRST_POLL_S, LAST_POLL_S = 0.25, 2.0
LISTEN_S = 0.1  # at most, until another client's channel is listened to
IDS_PER_READ = 512
SUBSCRIBE_WAIT_S, CLOSE_WAIT_S = 1.0, 1.0  # Redis may hang


class Handle(Protocol):
    id: str
    client: str  # whose job it is, where not this client's: that one's channel tells of its end

    def set_outcome(self, outcome: Outcome) -> None: ...
    def clear_outcome(self) -> None: ...
    def forget_future(self) -> None: ...


H = TypeVar("H", bound=Handle)
ReceiveText = Callable[[TextPiece], None]


class Watcher:
    """Delivers outcomes to job handles. Thread-safe; the thread starts with the first submit and ends with `close`."""

    def __init__(
        self, store: JobStore, broker: redis.Redis, client: str, note_ended: Callable[[Sequence[str]], None]
    ) -> None:
        """`note_ended` is told the ids that are announced."""
        self._store = store
        self._note_ended = note_ended
        self._redis = broker
        self._channel, self._text_channel = announce_channel(client), text_channel(client)
        self._followed: set[str] = set()  # channels of other clients
        self._has_foreign = False  # since it was last looked which to follow
        self._text_wanted: dict[str, set[ReceiveText]] = {}
        self._handles: WeakValueDictionary[str, Handle] = WeakValueDictionary()
        self._awaited: dict[str, Handle] = {}
        self._waits: dict[str, int] = {}  # how many wait for each of them
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._subscribed = threading.Event()  # or Redis has refused, once
        self._thread: threading.Thread | None = None
        self._subscription: Subscription | None = None
        self._next_poll, self._interval = 0.0, FIRST_POLL_S

    def start(self) -> None:
        """Subscribe before the first job is sent, so that its announcement is not missed. Does not wait for a hung Redis."""
        if self._closed.is_set():
            raise ForebayError("this client is closed; open another one, and ask it for the job by its id")
        with self._lock:
            if self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, name="forebay-watcher", daemon=True)
            self._thread.start()
        self._subscribed.wait(SUBSCRIBE_WAIT_S)

    def register(self, handles: Iterable[H]) -> list[H]:
        """Remember handles, without keeping them alive, so that their outcomes are delivered as they are announced.

        Gives the handle to use for each: the client's own where it has one of this id, for a job has one handle only.
        """
        with self._lock:
            return cast("list[H]", [self._handles.setdefault(handle.id, handle) for handle in handles])

    def handles(self) -> list[Handle]:
        """Those that are known and alive; takes no lock, which a thread that a fork left behind may hold."""
        return list(self._handles.values())

    def find(self, id: str) -> Handle | None:
        with self._lock:
            return self._handles.get(id)

    def poll_for(self, handle: Handle) -> None:
        """Somebody waits for this job: ask the ledger for it too."""
        self.start()
        with self._lock:
            self._awaited[handle.id] = handle
            self._has_foreign |= bool(handle.client)
            self._waits[handle.id] = self._waits.get(handle.id, 0) + 1
            self._interval = FIRST_POLL_S
            self._next_poll = min(self._next_poll, time.monotonic() + FIRST_POLL_S)

    def stop_polling_for(self, handle: Handle) -> None:
        """One who waited has given up: the ledger is asked for the job as long as others wait."""
        with self._lock:
            left = self._waits.get(handle.id, 0) - 1
            if left > 0:
                self._waits[handle.id] = left
            else:
                self._waits.pop(handle.id, None)
                self._awaited.pop(handle.id, None)

    @contextmanager
    def text_of(self, id: str, receive: ReceiveText) -> Iterator[None]:
        """Within it, hand on what this job of this client generates, as it comes; `receive` is called by the watcher's thread."""
        with self._lock:
            self._text_wanted.setdefault(id, set()).add(receive)
        try:
            yield
        finally:
            with self._lock:
                left = self._text_wanted[id]
                left.discard(receive)
                if not left:
                    del self._text_wanted[id]

    def followed(self) -> set[str]:
        """The channels of other clients that are listened to now."""
        return self._followed

    def text_wanted(self) -> list[str]:
        """The jobs whose text is handed on now."""
        with self._lock:
            return list(self._text_wanted)

    def refresh(self, ids: Iterable[str]) -> None:
        """Read these jobs from the ledger now and deliver those that have ended."""
        wanted = list(ids)
        for start in range(0, len(wanted), IDS_PER_READ):
            for outcome in self._store.queries.outcomes(wanted[start : start + IDS_PER_READ]):
                with self._lock:
                    handle = self._awaited.pop(outcome.id, None) or self._handles.get(outcome.id)
                    self._waits.pop(outcome.id, None)
                if handle is not None:
                    handle.set_outcome(outcome)

    def forget_outcomes(self, ids: Iterable[str]) -> None:
        for handle in filter(None, map(self.find, ids)):
            handle.clear_outcome()

    def close(self) -> None:
        """End the thread and the subscription."""
        self._closed.set()
        if self._thread is not None and self._thread.is_alive():  # Ctrl-C may also come before it has begun
            self._thread.join(CLOSE_WAIT_S)
        if self._subscription is not None:
            self._subscription.close()

    def _run(self) -> None:
        self._subscribe()
        self._subscribed.set()
        while not self._closed.is_set():
            announced = self._listen()
            try:
                self.refresh(announced)
                self._poll()
            except LedgerUnavailable as error:
                log.warning("ledger_unavailable", error=str(error), next="asking again")
                self._closed.wait(LAST_POLL_S)

    def _subscribe(self) -> bool:
        try:
            self._subscription = Subscription(self._redis, self._channel, self._text_channel)
        except (redis.RedisError, OSError):
            return False
        self._followed = set()
        return True

    def _follow(self, subscription: Subscription) -> None:
        """Listen to the channels of the other clients whose jobs are awaited here, and ask for what has ended before."""
        if not self._has_foreign and not self._followed:
            return
        self._has_foreign = False
        with self._lock:
            wanted = {announce_channel(handle.client) for handle in self._awaited.values() if handle.client}
        if wanted - self._followed:
            subscription.subscribe(*wanted - self._followed)
            self._next_poll, self._interval = 0.0, FIRST_POLL_S
        if self._followed - wanted:
            subscription.unsubscribe(*self._followed - wanted)
        self._followed = wanted

    def _listen(self) -> list[str]:
        """The ids announced since the last call, after waiting a little for the first."""
        if self._subscription is None and not self._subscribe():
            self._closed.wait(FIRST_POLL_S)
            return []
        assert self._subscription is not None  # noqa: S101 - _subscribe has just set it
        try:
            self._follow(self._subscription)
            lines = self._subscription.lines(LISTEN_S)
        except (redis.RedisError, OSError):
            self._subscription.close()
            self._subscription = None
            return []
        ids: list[str] = []
        for line in lines:
            if line.startswith(b"["):  # which no id and nothing of the protocol does
                self._hand_on_text(line)
            else:
                ids += line.decode("ascii", "replace").split(",")
        self._note_ended(ids)
        with self._lock:
            return [id for id in ids if id in self._handles]

    def _hand_on_text(self, data: bytes) -> None:
        try:
            pieces = msgspec.json.decode(data, type=list[TextPiece])
        except msgspec.MsgspecError as error:  # any client of Redis can send one
            log.warning("text_unreadable", error=str(error))
            return
        for piece in pieces:
            with self._lock:
                wanted = list(self._text_wanted.get(piece.job, ()))
            for receive in wanted:
                receive(piece)

    def _poll(self) -> None:
        now = time.monotonic()
        with self._lock:
            if not self._awaited or now < self._next_poll:
                return
            ids = list(self._awaited)
            self._interval = min(self._interval * 1.5, LAST_POLL_S)
            self._next_poll = now + self._interval
        self.refresh(ids)
