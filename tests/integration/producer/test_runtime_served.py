"""A version is registered only where its runtime is, or may come to be: workers say which ones they have."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay import Client, InvalidInput, ModelVersion, Settings
from forebay.contract.runtimes import installed_runtimes
from forebay.storage.ledger.connection import Ledger
from forebay.storage.workers import WorkerRegistry, lacks_runtime

CLASS = {"class": "shop.models:Echo"}


@pytest.fixture
def client(sqlite_ledger: Ledger, tmp_path: Path) -> Iterator[Client]:
    given = {"HOME": str(tmp_path / "home"), "DATABASE": sqlite_ledger.url, "BROKER": "redis://127.0.0.1:1/0"}
    settings = Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})
    with Client(settings) as client:
        yield client


def lives(client: Client, name: str, *runtimes: str, queue: str = "cpu") -> None:
    ledger = client.session.ledger
    WorkerRegistry(ledger).heartbeat(name, "host", "cpu", (queue,), ledger.now(), runtimes=runtimes)


def echo(client: Client, **given: object) -> ModelVersion:
    return client.models.register("echo", runtime="python", options=CLASS, **given)  # type: ignore[arg-type]


def test_a_runtime_that_no_worker_of_the_queue_has_is_refused_with_what_they_have(client: Client) -> None:
    assert echo(client).ref == "echo/1"  # nobody lives: whoever comes may have it
    lives(client, "gpu0@host", "python", queue="gpu")
    assert echo(client).ref == "echo/2"
    lives(client, "cpu@host", "onnx", "torch-export")
    with pytest.raises(InvalidInput, match=r"queue 'cpu' has the runtime 'python' \(cpu@host has onnx, torch-export\)"):
        echo(client)
    lives(client, "cpu2@host", "python")
    assert echo(client).ref == "echo/3"


def test_a_runtime_that_nobody_knows_is_refused(client: Client) -> None:
    with pytest.raises(
        InvalidInput, match=r"no runtime 'caffe' is alive on any worker or installed here; .*torch-export"
    ):
        client.models.register("m", runtime="caffe")
    lives(client, "cpu@host", "caffe")
    assert client.models.register("m", runtime="caffe").runtime == "caffe"


def test_what_brings_a_missing_runtime_is_said(client: Client) -> None:
    lives(client, "cpu@host", "python")
    [worker] = client.session.live_workers()
    assert "`pip install 'forebay[text]'` there brings it" in lacks_runtime("sentence-transformers", "cpu", [worker])
    assert lacks_runtime("python", "cpu", [worker]) == lacks_runtime("onnx", "gpu", [worker]) == ""


def test_a_runtime_without_its_library_is_not_among_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"torch-export", "python"} <= {*installed_runtimes()}
    monkeypatch.setattr("forebay.contract.runtimes.find_spec", lambda module: None if module == "torch" else module)
    assert "torch-export" not in installed_runtimes()
    assert "python" in installed_runtimes()


def test_an_alias_is_pointed_at_the_new_version_and_a_bad_one_stores_nothing(client: Client) -> None:
    assert echo(client, alias="champion").aliases == ("champion",)
    assert echo(client, alias="champion").ref == client.models.get("echo@champion").ref == "echo/2"
    with pytest.raises(InvalidInput, match="not a valid alias"):
        echo(client, alias="7 up")
    assert len(client.models.list("echo")) == 2
