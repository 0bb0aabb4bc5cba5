"""Where a worker's parent meets its children: what a killed parent left is removed, what is in use is not."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.worker.shared_page import page_path, remove_stale_pages


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder for them alone, whose name is short, as a socket's must be."""
    with tempfile.TemporaryDirectory(prefix="f-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(120)
    return process.pid


def listen(parent: int) -> socket.socket:
    place = page_path(parent)
    place.parent.mkdir(mode=0o700)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(place))
    listener.listen(1)
    return listener


def test_the_place_of_a_killed_parent_is_removed(gone):
    listen(gone).close()  # the kernel closes what a killed process held, and leaves the file
    assert page_path(gone).exists()
    remove_stale_pages()
    assert not page_path(gone).parent.exists()


def test_an_empty_place_of_a_killed_parent_is_removed(gone):
    page_path(gone).parent.mkdir()
    remove_stale_pages()
    assert not page_path(gone).parent.exists()


def test_places_in_use_stay(gone):
    with listen(os.getpid()), listen(os.getppid()), listen(gone):  # the last one's parent is in another container
        remove_stale_pages()
        assert all(page_path(pid).exists() for pid in (os.getpid(), os.getppid(), gone))


def test_what_is_no_place_stays(places, gone):
    (places / "elsewhere").mkdir()
    (places / f"forebay-{os.getuid()}-notes").mkdir()
    page_path(gone).parent.symlink_to(places / "elsewhere")
    remove_stale_pages()
    assert (places / f"forebay-{os.getuid()}-notes").is_dir()
    assert page_path(gone).parent.is_symlink()
    assert (places / "elsewhere").is_dir()
