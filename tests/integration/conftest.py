"""Stacks with real workers, one for a test or one that the tests of a module share, and a shell without either."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from support.commands import Shell, open_shell
from support.servers import ValkeyServer, running
from support.worker_stack import WorkerStack


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """The queue of the stacks that the module shares; a test may kill and start it."""
    with running(ValkeyServer(tmp_path_factory.mktemp("valkey"))) as server:
        yield server


@pytest.fixture(scope="module")
def open_stack(tmp_path_factory: pytest.TempPathFactory, server: ValkeyServer) -> Iterator[Callable[..., WorkerStack]]:
    """Opens a stack with these settings and no worker yet; it closes when the tests of the module have run."""
    with ExitStack() as stacks:

        def open_one(**settings: str) -> WorkerStack:
            return stacks.enter_context(closing(WorkerStack(tmp_path_factory.mktemp("stack"), server.url, **settings)))

        yield open_one


@pytest.fixture
def own(tmp_path: Path, broker: str) -> Iterator[WorkerStack]:
    """A stack of the test's own, without a worker yet."""
    with closing(WorkerStack(tmp_path, broker)) as stack:
        yield stack


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    yield from open_shell(tmp_path, monkeypatch)
