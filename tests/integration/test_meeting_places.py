"""Where a worker's parent meets its children: what a killed parent left is removed, what is in use is not."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.worker.board import meeting_place, remove_left_places


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
    process.wait(60)
    return process.pid


def listen(parent: int) -> socket.socket:
    place = meeting_place(parent)
    place.parent.mkdir(mode=0o700)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(place))
    listener.listen(1)
    return listener


def test_the_place_of_a_killed_parent_is_removed(gone):
    listen(gone).close()  # the kernel closes what a killed process held, and leaves the file
    assert meeting_place(gone).exists()
    remove_left_places()
    assert not meeting_place(gone).parent.exists()


def test_an_empty_place_of_a_killed_parent_is_removed(gone):
    meeting_place(gone).parent.mkdir()
    remove_left_places()
    assert not meeting_place(gone).parent.exists()


def test_places_in_use_stay(gone):
    with listen(os.getpid()), listen(os.getppid()), listen(gone):  # the last one's parent is in another container
        remove_left_places()
        assert all(meeting_place(pid).exists() for pid in (os.getpid(), os.getppid(), gone))


def test_what_is_no_place_stays(places, gone):
    (places / "elsewhere").mkdir()
    (places / f"forebay-{os.getuid()}-notes").mkdir()
    meeting_place(gone).parent.symlink_to(places / "elsewhere")
    remove_left_places()
    assert (places / f"forebay-{os.getuid()}-notes").is_dir()
    assert meeting_place(gone).parent.is_symlink()
    assert (places / "elsewhere").is_dir()
