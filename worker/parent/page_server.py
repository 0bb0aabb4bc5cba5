"""The socket on which a parent gives each of its children a shared page, and takes its stderr."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from forebay.contract.places import make_private_folder
from forebay.worker.shared_page import (
    SIZE,
    SOCKET,
    PageRefused,
    SharedPage,
    page_address,
    page_folder,
    peer,
    remove_stale_pages,
)


class PageServer:
    """Linux only: elsewhere children write to their own stderr, and nobody watches them."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder = page_folder(home, os.getpid())
        self._listener: socket.socket | None = None

    def listen(self) -> socket.socket:
        """Be there before the first child looks for its parent; PageRefused when the socket cannot be made."""
        remove_stale_pages(self._home)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            make_private_folder(self._folder)
            (self._folder / SOCKET).unlink(missing_ok=True)  # of a process that had this one's pid before
            with page_address(self._folder) as address:
                self._listener.bind(address)
            self._listener.listen(16)
        except OSError as error:
            self._listener.close()
            raise PageRefused(
                f"no memory can be shared with children at {self._folder}: {error}; set FOREBAY_HOME to a local folder"
            ) from error
        return self._listener

    def accept(self) -> tuple[int, socket.socket, SharedPage] | None:
        """A child's pid, its stderr and the page that it now shares; None for a stranger."""
        assert self._listener is not None  # noqa: S101 - it is what was selected
        connection, _ = self._listener.accept()
        pid, uid = peer(connection)
        if uid != os.getuid():
            connection.close()
            return None
        memory = os.memfd_create("forebay-page")
        os.ftruncate(memory, SIZE)
        page = SharedPage(memory)
        socket.send_fds(connection, [b"p"], [memory])
        os.close(memory)
        return pid, connection, page

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)
