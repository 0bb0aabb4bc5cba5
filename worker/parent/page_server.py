"""The socket on which a parent gives each of its children a shared page, and takes its stderr."""

from __future__ import annotations

import os
import shutil
import socket
import struct
from contextlib import suppress

from forebay.worker.shared_page import SIZE, SharedPage, page_path, remove_stale_pages


class PageServer:
    """Linux only: elsewhere children write to their own stderr, and nobody watches them."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    def listen(self) -> socket.socket:
        """Be there before the first child looks for its parent; OSError when the socket cannot be made."""
        remove_stale_pages()
        path = page_path(os.getpid())
        with suppress(FileExistsError):
            path.parent.mkdir(mode=0o700)
        if path.parent.is_symlink() or path.parent.stat().st_uid != os.getuid():
            raise OSError(f"{path.parent} belongs to another user")
        path.unlink(missing_ok=True)  # of a process that had this one's pid before
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(16)
        return self._listener

    def accept(self) -> tuple[int, socket.socket, SharedPage] | None:
        """A child's pid, its stderr and the page that it now shares; None for a stranger."""
        assert self._listener is not None  # noqa: S101 - it is what was selected
        connection, _ = self._listener.accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
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
        shutil.rmtree(page_path(os.getpid()).parent, ignore_errors=True)
