"""What the workers of a machine are called: by device and purpose, none twice."""

import os
import platform
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forebay.contract.job import JobState
from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import make_app
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import RoutedJob
from forebay.contract.wire.payload import pack_input
from forebay.storage.workers import WorkerRegistry
from forebay.worker.parent import supervisor
from forebay.worker.parent.devices import WorkerPlan
from forebay.worker.parent.supervisor import name_workers
from support.jobs import new
from support.ledgers import new_ledger
from support.models import HELD
from support.waiting import wait_until
from support.worker_stack import WorkerStack

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


def environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What `forebay worker` starts a worker with."""
    started: list[Any] = []
    done = threading.Event()
    done.set()
    monkeypatch.setattr(supervisor, "stop_signal", lambda: done)
    monkeypatch.setattr(
        supervisor, "ProcessSupervisor", lambda made: started.extend(made) or SimpleNamespace(stop=bool)
    )
    assert supervisor.run_workers(Settings.load({}, home=home), ["cpu"], 1) == 0
    return dict(started[0].env)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_a_worker_uses_freed_memory_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    faults = """
import resource
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (40 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    found = subprocess.check_output([sys.executable, "-c", faults], env=environment(home, monkeypatch))
    assert int(found) < 1000, "40 MiB are 10,240 pages"


def test_the_allocator_is_as_whoever_starts_a_worker_wants_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    assert environment(home, monkeypatch)["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2"


def test_a_worker_whose_child_dies_frees_nothing_of_another_worker_with_its_name(tmp_path: Path, broker: str) -> None:
    with closing(WorkerStack(tmp_path, broker, LEASE_S="60", ALLOWED_PYTHON_MODELS="support.models")) as stack:
        first, model = stack.worker().ready(), stack.model("Recorder")
        stack.hold()
        ours = stack.client.predict(model, {"n": 1})
        stack.wait_until_held()
        first.freeze()
        (stack.folder / HELD).unlink()
        second = stack.worker("w2", WORKER_NAME="w1@test").ready()
        [theirs] = stack.store.add([new(model="recorder", input=pack_input([{"n": 2}], False))])
        jobs = [RoutedJob(id, "recorder", 1, "cpu", 5) for id in (ours.id, theirs)]
        Dispatcher(make_app(stack.settings)).send_jobs(jobs)  # one message, whose first job is the other's by now
        wait_until((stack.folder / HELD).exists, "the second runs its job")
        [child] = second.children()
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: "event=child_lost" in second.said(), "its death is settled")
        assert (ours.info().state, ours.info().worker) == (JobState.RUNNING, "w1@test")
        first.thaw()
        stack.go_on()
        ours.result(120)
        stack.client.job(theirs).result(120)
        assert (ours.info().attempt, stack.client.job(theirs).info().attempt) == (1, 2)
