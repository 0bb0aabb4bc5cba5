"""A TCP proxy in front of Redis that can make its clients deaf: their BRPOP comes back empty, all else goes through.

That is how a consumer looks from outside that has lost its ears and not its connection: nothing times out, nothing fails.
"""

import socket
import threading
from contextlib import suppress

NOTHING = b"*-1\r\n"
POP_S = 0.5


class DeafProxy:
    """Listens on `port` of loopback and forwards to `upstream`. `close` it in the end."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._deaf: set[int] = set()
        self._all_deaf = False
        self.swallowed = 0  # BRPOPs that came back empty
        self._closed = threading.Event()
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def deafen(self, later_ones: bool = False) -> None:
        """From now on those who are connected hear nothing; with `later_ones`, those who will connect neither."""
        self._deaf = {id(s) for s in self._sockets}
        self._all_deaf = later_ones
        self.swallowed = 0

    def heal(self) -> None:
        """Everyone hears again."""
        self._deaf, self._all_deaf = set(), False

    def close(self) -> None:
        """Cut every connection."""
        self._closed.set()
        for each in [self._listener, *self._sockets]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream))
            except OSError:
                return
            self._sockets += [client, server]
            threading.Thread(target=self._ask, args=(client, server), daemon=True).start()
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if b"BRPOP" in data and (self._all_deaf or id(client) in self._deaf):
                    self.swallowed += 1
                    self._closed.wait(POP_S)
                    client.sendall(NOTHING)
                else:
                    server.sendall(data)
        for each in (client, server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
        for each in (client, server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
