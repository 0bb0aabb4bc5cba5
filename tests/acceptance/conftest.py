"""One stack for all tests that only need one: started as a user starts it, with the digits network registered."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay import Client
from support import digits
from support.user import User


@pytest.fixture(scope="session")
def net():
    return digits.network()


@pytest.fixture(scope="session")
def direct(net):
    """Rows through the network without Forebay."""
    return digits.direct(net)


@pytest.fixture(scope="session")
def digits_pt2(net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.export(net, tmp_path_factory.mktemp("artifacts") / "digits.pt2")


@pytest.fixture(scope="session")
def user(tmp_path_factory: pytest.TempPathFactory, digits_pt2: Path) -> Iterator[User]:
    """Somebody with a stack whose only worker serves the queue `cpu`, and the model `digits` registered."""
    user = User(tmp_path_factory.mktemp("user"))
    with user.up("--no-dashboard", "--no-api", "--queues", "cpu"):
        user.ok("models", "register", "digits", str(digits_pt2), "--max-batch-size", "64")
        yield user


@pytest.fixture(scope="module")
def client(user: User) -> Iterator[Client]:
    with user.client() as client:
        yield client


@pytest.fixture
def somebody(tmp_path: Path) -> User:
    """Somebody with nothing running."""
    return User(tmp_path)
