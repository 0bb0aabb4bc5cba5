"""A TCP proxy in front of PostgreSQL or Redis that cuts, delays and silences connections.

It reads PostgreSQL's protocol: what a client asks in one go (an exchange) ends with Sync or a simple query, its answer with
ReadyForQuery. So a connection can be cut just before an exchange reaches the server, or just after the server has done it
and before its client hears of it. Of Redis each packet counts as an exchange.
"""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

READ_BYTES = 1 << 16
NO_TLS = {80877103, 80877104}  # SSLRequest and GSSENCRequest: answered here, for what is encrypted cannot be read


class Cut(StrEnum):
    """When a connection is cut: its server never hears what was asked, or its client never hears the answer."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a client asked; for a COMMIT with the statements of its transaction."""

    text: str
    transaction: tuple[str, ...] = ()

    @property
    def is_commit(self) -> bool:
        return self.text == "COMMIT"


Decide = Callable[[Exchange], Cut | None]


def never(_: Exchange) -> Cut | None:
    return None


class FaultProxy:
    """Listens on `port` of loopback and forwards to `upstream`. `close` it in the end.

    `decide` is asked about every exchange as it comes, by several threads; it may be replaced at any time.
    """

    def __init__(self, upstream: int, *, postgres: bool = True) -> None:
        self.decide: Decide = never
        self.delay_s = 0.0  # that each answer takes longer
        self.cuts = 0
        self._upstream, self._postgres = upstream, postgres
        self._links: set[_Link] = set()
        self._passing = threading.Event()
        self._passing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_all(self) -> None:
        """Cut every connection."""
        for link in list(self._links):
            self._cut(link)

    def silence(self) -> None:
        """Nothing passes any more: connections stay open, and new ones are taken, but nobody hears of them."""
        self._passing.clear()

    def hear(self) -> None:
        """New connections are served again; those that were silent are cut, as a network does in the end."""
        self.cut_all()
        self._passing.set()

    def close(self) -> None:
        """Cut every connection, and take no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._upstream))
            except OSError:  # it is down
                client.close()
                continue
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server)
            self._links.add(link)
            ask = self._ask_postgres if self._postgres else self._ask_redis
            for work in (ask, self._answer):
                threading.Thread(target=self._serve, args=(work, link), daemon=True).start()

    def _serve(self, work: Callable[["_Link"], None], link: "_Link") -> None:
        try:
            work(link)
        except (OSError, EOFError):
            pass
        finally:
            self._links.discard(link)
            link.close()

    def _ask_redis(self, link: "_Link") -> None:
        while data := link.client.recv(READ_BYTES):
            self._forward(link, data, Exchange(data[:200].decode("ascii", "replace")))

    def _ask_postgres(self, link: "_Link") -> None:
        messages = _Messages(link.client)
        start = messages.startup()
        while start.code in NO_TLS:
            link.client.sendall(b"N")
            start = messages.startup()
        link.server.sendall(start.data)
        texts, held = _Texts(), b""
        while True:
            kind, body = messages.next()
            held += kind + struct.pack("!i", len(body) + 4) + body
            texts.note(kind, body)
            if kind in b"QS":
                self._forward(link, held, texts.exchange())
                held = b""
            elif kind not in b"PBDECHF":  # a password, the end: nothing to wait for
                link.server.sendall(held)
                held = b""

    def _forward(self, link: "_Link", data: bytes, exchange: Exchange) -> None:
        cut = self.decide(exchange)
        if cut is Cut.BEFORE:
            self._cut(link)
            return
        link.swallow = cut is Cut.AFTER
        self._pass(link.server, data)

    def _answer(self, link: "_Link") -> None:
        while data := link.server.recv(READ_BYTES):
            if link.swallow:  # the client waits for this answer, so that it begins here
                self._swallow(link, data)
                return
            if self.delay_s:
                threading.Event().wait(self.delay_s)
            self._pass(link.client, data)

    def _swallow(self, link: "_Link", data: bytes) -> None:
        if self._postgres:
            messages = _Messages(link.server, data)
            while messages.next()[0] != b"Z":
                continue
        self._cut(link)

    def _pass(self, to: socket.socket, data: bytes) -> None:
        self._passing.wait()
        to.sendall(data)

    def _cut(self, link: "_Link") -> None:
        self.cuts += 1
        self._links.discard(link)
        link.close()


@dataclass(eq=False, slots=True)
class _Link:
    """A client's connection, and the one to the server that belongs to it."""

    client: socket.socket
    server: socket.socket
    swallow: bool = False  # the answer that comes next is not passed on

    def close(self) -> None:
        for each in (self.client, self.server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@dataclass(frozen=True, slots=True)
class _Startup:
    code: int
    data: bytes


class _Messages:
    """PostgreSQL's messages from a socket."""

    def __init__(self, source: socket.socket, begun: bytes = b"") -> None:
        self._source, self._data = source, begun

    def startup(self) -> _Startup:
        length, code = struct.unpack("!ii", self._peek(8))
        return _Startup(code, self._take(length))

    def next(self) -> tuple[bytes, bytes]:
        """The next message's type and body."""
        kind, length = struct.unpack("!ci", self._peek(5))
        return kind, self._take(1 + length)[5:]

    def _take(self, count: int) -> bytes:
        self._peek(count)
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def _peek(self, count: int) -> bytes:
        while len(self._data) < count:
            more = self._source.recv(READ_BYTES)
            if not more:
                raise EOFError
            self._data += more
        return self._data[:count]


@dataclass(slots=True)
class _Texts:
    """Which statements the messages of one connection are about."""

    _prepared: dict[bytes, str] = field(default_factory=dict)
    _texts: list[str] = field(default_factory=list)
    _transaction: list[str] = field(default_factory=list)

    def note(self, kind: bytes, body: bytes) -> None:
        if kind == b"Q":
            self._texts.append(body.rstrip(b"\0").decode())
        elif kind == b"P":
            name, text = body.split(b"\0")[:2]
            self._prepared[name] = text.decode()
        elif kind == b"B":
            self._texts.append(self._prepared.get(body.split(b"\0")[1], "?"))

    def exchange(self) -> Exchange:
        """What the messages since the last call ask."""
        text, self._texts = "; ".join(self._texts), []
        if text.startswith("BEGIN"):
            self._transaction = []
        elif text in ("COMMIT", "ROLLBACK"):
            done, self._transaction = tuple(self._transaction), []
            return Exchange(text, done)
        elif text:
            self._transaction.append(text)
        return Exchange(text)
