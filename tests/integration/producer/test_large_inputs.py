"""Inputs that lie in blobs: each job has its own, and a full queue keeps none of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from forebay import Client, InvalidInput, QueueFull, Settings
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature
from forebay.contract.wire.payload import unpack_input
from forebay.storage.jobs.views import JobViews
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.registry import ModelRegistry

SIZE = 2**17


@pytest.fixture
def client(ledger: Ledger, tmp_path: Path) -> Iterator[Client]:
    ModelRegistry(ledger).register(ModelVersion("m", 0, "python", "", "none", 0, Signature()))
    (tmp_path / "forebay.toml").write_text("[queues.cpu]\nmax_queue_size = 1000\n")
    given = {"HOME": str(tmp_path / "home"), "DATABASE": ledger.url, "BROKER": "redis://127.0.0.1:1/0"}
    with Client(Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})) as client:
        yield client


def in_one_memory(count: int) -> Iterator[NDArray[Any]]:
    array = np.zeros(SIZE, np.uint8)
    for n in range(count):
        array[:] = n
        yield array


def blobs(client: Client) -> list[Path]:
    folder = Path(client.settings.blobs.removeprefix("file://"))
    return [path for path in folder.rglob("*") if path.stat().st_size > SIZE]


class Lazy:
    """Reads its array when it is asked for, always into the same memory."""

    memory = np.zeros(SIZE, np.uint8)

    def __init__(self, n: int) -> None:
        self._n = n

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        self.memory[:] = self._n
        return self.memory


@pytest.mark.parametrize("form", ["arrays", "batches", "objects in a list"])
def test_inputs_that_are_made_in_one_memory_one_after_the_other_stay_what_they_were(client: Client, form: str) -> None:
    given: Any = in_one_memory(20)
    if form == "batches":
        given = (array[None] for array in given)
    if form == "objects in a list":
        given = [Lazy(n) for n in range(20)]
    jobs = client.predict_many("m", given, batched=form == "batches")
    for n, job in enumerate(jobs):
        details = JobViews(client.session.ledger).details(job.id, 1)
        [row] = unpack_input(client.session.payloads.load(details.input, details.input_ref)).rows
        assert set(np.asarray(row).tolist()) == {n}
    assert len(blobs(client)) == 20


def test_a_full_queue_refuses_large_inputs_before_one_is_stored(client: Client) -> None:
    for n in range(0, 1000, 100):
        client.predict_many("m", range(n, n + 100))
    with pytest.raises(QueueFull):
        client.predict_many("m", [array.copy() for array in in_one_memory(5)])
    with pytest.raises(QueueFull):
        client.predict("m", next(in_one_memory(1)))
    assert blobs(client) == []


def test_equal_keys_take_equal_large_inputs_only(client: Client) -> None:
    first = client.predict("m", np.zeros(SIZE), idempotency_key="k")
    assert client.predict("m", np.zeros(SIZE), idempotency_key="k").id == first.id
    with pytest.raises(InvalidInput, match="different request"):
        client.predict("m", np.ones(SIZE), idempotency_key="k")
