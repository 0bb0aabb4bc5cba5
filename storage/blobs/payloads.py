"""Where a payload lies: in the job's row when it is small, in the blob store when it is not, nowhere when it is too large."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from forebay.contract.errors import PayloadTooLarge
from forebay.contract.queues import format_bytes
from forebay.contract.settings import Settings
from forebay.contract.wire.codec import Part, Parts
from forebay.storage.blobs.store import BlobStore

T = TypeVar("T")
R = TypeVar("R")
Stored = tuple[bytes | None, str | None]

THREADS = (
    4  # which store or read large payloads at once: hashing takes a core, and a disk or a store makes each one wait
)


class Payloads:
    """Stores and loads the bytes of inputs and results by the limits of the settings. Thread-safe."""

    def __init__(self, blobs: BlobStore, settings: Settings, recent_bytes: int = 0) -> None:
        """Of what it has read and checked, it keeps the last `recent_bytes` for whoever asks again."""
        self._blobs = blobs
        self._inline = settings.max_inline_bytes
        self._limit = settings.max_payload_bytes
        self._recent = _Recent(recent_bytes)

    def check(self, *parts: Part) -> None:
        """PayloadTooLarge when the bytes exceed the hard limit."""
        if (size := size_of(parts)) > self._limit:
            raise PayloadTooLarge(
                f"the payload has {format_bytes(size)}, the limit is {format_bytes(self._limit)}; "
                "send fewer or smaller rows, or raise max_payload_bytes (FOREBAY_MAX_PAYLOAD_BYTES)"
            )

    def fits_inline(self, *parts: Part) -> bool:
        """Whether these bytes need no blob."""
        return size_of(parts) <= self._inline

    def store(self, *parts: Part) -> Stored:
        """(inline bytes, None) or (None, blob name)."""
        if self.fits_inline(*parts):
            return b"".join(parts), None
        return None, self._blobs.put(*parts)

    def store_all(self, payloads: Iterable[Parts]) -> Iterator[Stored]:
        """The same for many, in order; takes no more payloads than it stores at once, so that few are in memory."""
        return _ahead(lambda parts: self.store(*parts), payloads, lambda parts: not self.fits_inline(*parts))

    def load(self, inline: bytes | None, ref: str | None) -> bytes:
        """The bytes again, whichever way they were stored."""
        if ref is None:
            return inline or b""
        if (data := self._recent.get(ref)) is None:
            data = self._blobs.get(ref)
            self._recent.add(ref, data)
        return data

    def load_all(self, places: Iterable[Stored]) -> Generator[bytes | Exception, None, None]:
        """The same for many, in order, a few ahead of whoever takes them; of one that cannot be read, why."""
        return _ahead(self._loaded, places, lambda place: place[1] is not None)

    def _loaded(self, place: Stored) -> bytes | Exception:
        try:
            return self.load(*place)
        except Exception as error:  # noqa: BLE001 - belongs to this payload
            return error


def size_of(parts: Parts) -> int:
    """How many bytes these are."""
    return sum(map(len, parts))


def _ahead(work: Callable[[T], R], items: Iterable[T], slow: Callable[[T], bool]) -> Generator[R, None, None]:
    """`work` of each item, in order; of slow ones that of a few at once, in threads."""
    threads, coming = None, deque[Callable[[], R]]()
    try:
        for item in items:
            if slow(item):
                threads = threads or ThreadPoolExecutor(THREADS, "payload")
                coming.append(threads.submit(work, item).result)
            elif coming:
                coming.append(partial(work, item))
            else:
                yield work(item)
            if len(coming) > THREADS:
                yield coming.popleft()()
        yield from (result() for result in coming)
    finally:
        if threads is not None:
            threads.shutdown(cancel_futures=True)


class _Recent:
    """The blobs that were read last, of so many bytes together. They were checked when they were read."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, ref: str) -> bytes | None:
        with self._lock:
            if ref in self._held:
                self._held.move_to_end(ref)
            return self._held.get(ref)

    def add(self, ref: str, data: bytes) -> None:
        with self._lock:
            if len(data) > self._most or ref in self._held:
                return
            self._held[ref] = data
            self._bytes += len(data)
            while self._bytes > self._most:
                self._bytes -= len(self._held.popitem(last=False)[1])
