"""What the workers of a machine are called: by device and purpose, none twice."""

from pathlib import Path

import pytest

from forebay.contract.settings import Settings
from forebay.storage.workers import WorkerRegistry
from forebay.worker.parent.devices import WorkerPlan
from forebay.worker.parent.supervisor import name_workers
from support.ledgers import new_ledger

PLANS = [
    WorkerPlan("gpu0", "cuda:0", ["gpu"]),
    WorkerPlan("cpu", "cpu", ["cpu"]),
    WorkerPlan("train", "cpu", ["train"]),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("socket.gethostname", lambda: "host")
    with new_ledger(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        WorkerRegistry(ledger).heartbeat("train@host", "host", "cpu", ("train",), 0.0)
    return tmp_path


def names(home: Path, **flags: str) -> list[str]:
    return [name for name, _ in name_workers(Settings.load({}, home=home, **flags), PLANS)]


def test_workers_are_called_by_their_device_and_a_name_that_lives_is_not_given_again(home: Path) -> None:
    assert names(home) == ["gpu0@host", "cpu@host", "train-2@host"]


def test_a_name_that_is_set_is_given_once(home: Path) -> None:
    assert names(home, worker_name="big") == ["big", "cpu-big", "train-big"]
