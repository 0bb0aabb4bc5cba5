"""Where a worker's parent meets its children: what a killed parent left is removed, what is in use is not, and nobody else's
is taken for ours.
"""  # fmt: skip

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from forebay.contract.places import make_private_folder
from forebay.worker import shared_page
from forebay.worker.parent.page_server import PageServer
from forebay.worker.shared_page import SOCKET, PageRefused, attach_to_parent, page_folder, remove_stale_pages


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """One whose path is longer than a socket's may be."""
    return make_private_folder(tmp_path / ("deep" * 20) / ("home" * 20))


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(120)
    return process.pid


ATTACH = """
import os, sys
from pathlib import Path
from forebay.worker.shared_page import attach_to_parent
page = attach_to_parent(Path(sys.argv[1]))
page.hold("job", 3)
os.write(2, b"said")
"""


def test_a_child_shares_a_page_with_its_parent_and_its_last_words_too(home: Path) -> None:
    server = PageServer(home)
    server.listen()
    child = subprocess.Popen([sys.executable, "-c", ATTACH, str(home)])
    accepted = server.accept()
    assert accepted is not None
    pid, stderr, page = accepted
    assert child.wait(120) == 0
    assert (pid, page.held(), stderr.recv(100)) == (child.pid, {"job": 3}, b"said")
    server.close()
    stderr.close()
    assert not page_folder(home, os.getpid()).exists()


def test_a_parent_takes_no_folder_that_others_may_enter(home: Path) -> None:
    folder = make_private_folder(page_folder(home, os.getpid()))
    folder.chmod(0o777)
    with pytest.raises(PageRefused, match="others may enter"):
        PageServer(home).listen()
    folder.rmdir()
    (home / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(home / "elsewhere")
    with pytest.raises(PageRefused):
        PageServer(home).listen()
    assert not list((home / "elsewhere").iterdir())


def test_a_child_does_not_work_without_a_page_or_with_a_strangers(home: Path) -> None:
    with pytest.raises(PageRefused, match="no memory to share"):
        attach_to_parent(home)
    folder = make_private_folder(page_folder(home, os.getppid()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger, shared_page.page_address(folder) as address:
        stranger.bind(address)
        stranger.listen(1)
        with pytest.raises(PageRefused, match="another process"):  # this one, which is not its own parent
            attach_to_parent(home)
        folder.chmod(0o750)
        with pytest.raises(PageRefused, match="others may enter"):
            attach_to_parent(home)


def test_the_place_of_a_killed_parent_is_removed_and_those_in_use_stay(home: Path, gone: int) -> None:
    for pid in (gone, os.getpid(), os.getppid()):
        (make_private_folder(page_folder(home, pid)) / SOCKET).touch()
    elsewhere = page_folder(home, gone).with_name(f"another-machine-1-{gone}")  # or another container of this one
    elsewhere.mkdir()
    remove_stale_pages(home)
    assert not page_folder(home, gone).exists()
    assert page_folder(home, os.getpid()).exists()
    assert page_folder(home, os.getppid()).exists()
    assert elsewhere.exists()
