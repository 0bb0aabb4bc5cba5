"""Where data lies: whoever makes the home makes it for its owner only, and what no worker sees is refused."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from forebay.cli.doctor import check_all
from forebay.contract.errors import InvalidInput
from forebay.contract.places import make_private_folder, open_to_others, refuse_unshared
from forebay.contract.settings import Settings
from forebay.datasets.formats.files import absolute, find_files
from forebay.stack import stack, valkey
from forebay.storage.blobs.store import BlobStore
from forebay.storage.ledger.connection import Ledger
from forebay.worker.execution.work_folder import work_folder
from forebay.worker.parent.page_server import PageServer
from forebay.worker.parent.processes import ManagedProcess


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_private_folder_is_made_with_all_above_it_and_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert make_private_folder(tmp_path / "a" / "b" / "c") == tmp_path / "a" / "b" / "c"
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/c")] == [0o700] * 3
    (tmp_path / "a").chmod(0o750)
    make_private_folder(tmp_path / "a" / "b")
    assert (mode(tmp_path), mode(tmp_path / "a")) == (0o755, 0o750)
    assert open_to_others(tmp_path / "a")
    assert not open_to_others(tmp_path / "a" / "b")


def test_a_file_in_the_way_of_a_private_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        make_private_folder(tmp_path / "file")
    with pytest.raises(OSError, match="file"):
        make_private_folder(tmp_path / "file" / "below")


def start_ledger(home: Path) -> None:
    Ledger(f"sqlite:///{home / 'ledger.db'}", create=True).close()


def store_blob(home: Path) -> None:
    BlobStore((home / "blobs").as_uri()).put(b"payload")


def fetch_artifact(home: Path) -> None:
    blobs = BlobStore((home.parent / "blobs").as_uri())
    blobs.fetch(blobs.put(b"artifact"), home / "artifacts" / "model")


def train(home: Path) -> None:
    with work_folder(home / "training", "job-1"):
        pass


def start_part(home: Path) -> None:
    part = ManagedProcess("part", ["true"], output=home / "logs" / "part.log")
    part.start()
    assert part.popen is not None
    part.popen.wait(60)


def serve_pages(home: Path) -> None:
    server = PageServer(home)
    server.listen()
    server.close()


def stop_here(*_args: object, **_kwargs: object) -> None:
    raise KeyboardInterrupt


def start_detached(home: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack.subprocess, "Popen", stop_here)
        with pytest.raises(KeyboardInterrupt):
            stack.start_detached(home, [])


def start_queue(home: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(valkey.subprocess, "Popen", stop_here)
        with pytest.raises(KeyboardInterrupt):
            valkey.Valkey(home / "valkey").start()


MAKERS = [start_ledger, store_blob, fetch_artifact, train, start_part, serve_pages, start_detached, start_queue]


@pytest.mark.parametrize("make", MAKERS)
def test_whoever_makes_the_home_makes_it_for_its_owner_only(tmp_path: Path, make: Callable[[Path], None]) -> None:
    home = tmp_path / "above" / "home"
    make(home)
    assert [mode(folder) for folder in (home.parent, home)] == [0o700, 0o700]


def test_doctor_finds_a_home_that_others_may_enter(tmp_path: Path) -> None:
    home = make_private_folder(tmp_path / "home")
    settings = Settings.load({}, home=home)

    def found() -> tuple[bool, str]:
        (finding,) = [finding for finding in check_all(settings) if finding.what == "home"]
        return finding.ok, finding.remedy

    assert found() == (True, "")
    home.chmod(0o755)
    assert found() == (False, f"chmod 700 '{home}'")


UNSHARED = ["memory://x/a.csv", "memory:///a.csv", "simplecache::memory://a.csv", "filecache::simplecache::memory://a"]


@pytest.mark.parametrize("url", UNSHARED)
def test_a_store_that_no_worker_sees_is_refused(url: str) -> None:
    for use in (partial(find_files, suffixes=[".csv"]), absolute, BlobStore):
        with pytest.raises(InvalidInput, match="where no worker sees it"):
            use(url)


@pytest.mark.parametrize(
    "url", ["memory", "memory/a.csv", "file:///memory/a.csv", "s3://memory/memory://a", "a::memory"]
)
def test_a_name_that_only_looks_like_memory_is_not_refused(url: str) -> None:
    refuse_unshared(url)
