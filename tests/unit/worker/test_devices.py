"""Which workers a machine starts: one for each device, and others for queues that only train."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from forebay.contract.errors import DeviceNotFound
from forebay.contract.job import JobKind
from forebay.contract.queues import DEFAULT_QUEUES, TRAINING, QueueSpec, Resources
from forebay.worker.parent import devices
from forebay.worker.parent.devices import count_gpus, plan_workers

ALL = list(DEFAULT_QUEUES.values())


def started(queues: list[QueueSpec], gpus: int) -> list[tuple[str, str, list[str]]]:
    return [(made.stem, made.device, made.queues) for made in plan_workers(queues, gpus)]


def test_a_machine_without_a_gpu_runs_one_worker_waits_for_other_servers_in_another_and_trains_in_a_third() -> None:
    queues = [queue for queue in ALL if not queue.capacity.gpu]
    assert started(queues, 0) == [
        ("cpu", "cpu", ["cpu"]), ("remote", "cpu", ["remote"]), ("train", "cpu", ["train"]),
    ]  # fmt: skip


def test_each_gpu_has_a_worker_that_runs_and_one_that_trains() -> None:
    assert started(ALL, 2) == [
        ("gpu0", "cuda:0", ["gpu"]), ("gpu1", "cuda:1", ["gpu"]), ("cpu", "cpu", ["cpu"]),
        ("remote", "cpu", ["remote"]),
        ("train-gpu0", "cuda:0", ["train-gpu"]), ("train-gpu1", "cuda:1", ["train-gpu"]), ("train", "cpu", ["train"]),
    ]  # fmt: skip


def test_a_training_queue_of_several_gpus_has_a_worker_for_so_many() -> None:
    pair = QueueSpec("pair", Resources(gpu=2.0), TRAINING)
    assert started([pair], 5) == [("train-gpu0", "cuda:0", ["pair"]), ("train-gpu2", "cuda:2", ["pair"])]


def test_a_queue_of_mixed_kinds_is_served_by_the_workers_that_run() -> None:
    mixed = QueueSpec("mixed", Resources(), frozenset({JobKind.PREDICT, JobKind.TRAIN}))
    assert started([mixed, DEFAULT_QUEUES["train"]], 0) == [("cpu", "cpu", ["mixed"]), ("train", "cpu", ["train"])]


def test_a_queue_that_needs_more_gpus_than_there_are_is_refused() -> None:
    with pytest.raises(DeviceNotFound, match="'train-gpu' needs 1 GPU"):
        plan_workers([DEFAULT_QUEUES["train-gpu"]], 0)


def no_library(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")


def test_without_a_driver_there_is_no_gpu_and_torch_is_not_loaded_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", no_library)
    monkeypatch.setattr(devices, "_AMD", Path("/no/such/device"))
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("torch was loaded"))
    assert count_gpus() == 0


@pytest.mark.parametrize(("status", "printed", "gpus"), [(0, "2\n", 2), (0, "", 0), (1, "", 0)])
@pytest.mark.parametrize("amd", [True, False])
def test_with_a_driver_torch_says_how_many_there_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, printed: str, gpus: int, amd: bool
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, status, printed, "")

    monkeypatch.setattr("ctypes.CDLL", no_library if amd else lambda name: name)
    monkeypatch.setattr(devices, "_AMD", tmp_path if amd else Path("/no/such/device"))
    monkeypatch.setattr("subprocess.run", run)
    assert count_gpus() == gpus
