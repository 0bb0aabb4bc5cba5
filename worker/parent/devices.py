"""Which workers a machine should run: one per device, and others for queues that only train."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from forebay.contract.errors import DeviceNotFound, MissingExtra
from forebay.contract.queues import QueueSpec

_PROBE = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
_NVIDIA, _AMD = "libcuda.so.1", Path("/dev/kfd")  # what torch reaches a GPU by: NVIDIA's driver, or AMD's


def count_gpus() -> int:
    """How many CUDA devices torch can use here; MissingExtra without torch.

    Asked in a process of its own, since a parent must never touch CUDA, and only where there is a driver: torch takes seconds
    to load.
    """
    if find_spec("torch") is None:
        raise MissingExtra("a worker needs torch", "worker")
    if not has_driver():
        return 0
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=120, check=False)
    return int(done.stdout.strip() or 0) if done.returncode == 0 else 0


def has_driver() -> bool:
    """Whether a GPU's driver is installed here; without one torch finds no device."""
    try:
        ctypes.CDLL(_NVIDIA)
    except OSError:
        return _AMD.exists()
    return True


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """One worker: the beginning of its name, its device (the first of several), and the queues that it serves."""

    stem: str
    device: str
    queues: list[str]


def plan_workers(queues: Sequence[QueueSpec], gpus: int) -> list[WorkerPlan]:
    """One worker per device, with the queues it serves; remote queues, and those that only train, have workers of their own
    beside them.

    A training queue that declares several GPUs has one worker for so many. DeviceNotFound when a queue that was asked for needs
    more GPUs than there are.
    """
    for queue in queues:
        if queue.capacity.gpu > gpus:
            raise DeviceNotFound(
                f"queue {queue.name!r} needs {queue.capacity.gpu:g} GPU; torch.cuda sees {gpus} on this machine (looked with "
                "torch.cuda.is_available() and device_count()). Start the worker on a machine with one, or serve other "
                "queues: forebay worker --queues cpu"
            )
    trains = [queue for queue in queues if queue.trains]
    remote = [queue.name for queue in queues if queue.remote]
    runs = [queue for queue in queues if not queue.trains and not queue.remote]
    plans = _on_gpus([q.name for q in runs if q.capacity.gpu], gpus, 1, "")
    plans += _on_cpu([q.name for q in runs if not q.capacity.gpu], "cpu") + _on_cpu(remote, "remote")
    for size in sorted({max(1, int(q.capacity.gpu)) for q in trains if q.capacity.gpu}):
        names = [q.name for q in trains if q.capacity.gpu and max(1, int(q.capacity.gpu)) == size]
        plans += _on_gpus(names, gpus, size, "train-")
    return plans + _on_cpu([q.name for q in trains if not q.capacity.gpu], "train")


def _on_gpus(queues: list[str], gpus: int, size: int, prefix: str) -> list[WorkerPlan]:
    firsts = range(0, gpus - size + 1, size) if queues else ()
    return [WorkerPlan(f"{prefix}gpu{first}", f"cuda:{first}", queues) for first in firsts]


def _on_cpu(queues: list[str], stem: str) -> list[WorkerPlan]:
    return [WorkerPlan(stem, "cpu", queues)] if queues else []
