"""Which devices this machine has, asked in a process of its own: a parent must never touch CUDA."""

from __future__ import annotations

import subprocess
import sys

from forebay.contract.errors import DeviceNotFound, MissingExtra
from forebay.contract.queues import QueueSpec

_PROBE = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


def count_gpus() -> int:
    """How many CUDA devices torch can use here; MissingExtra when there is no torch."""
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=120, check=False)
    if "ModuleNotFoundError" in done.stderr:
        raise MissingExtra("a worker needs torch: pip install 'forebay[worker]'")
    return int(done.stdout.strip() or 0) if done.returncode == 0 else 0


def plan(queues: list[QueueSpec], gpus: int) -> list[tuple[str, list[str]]]:
    """One worker per device, with the queues it serves: [("cuda:0", ["gpu"]), ("cpu", ["cpu"])].

    DeviceNotFound when a queue that was asked for needs more GPUs than there are.
    """
    for queue in queues:
        if queue.capacity.gpu > gpus:
            raise DeviceNotFound(
                f"queue {queue.name!r} needs {queue.capacity.gpu:g} GPU; torch.cuda sees {gpus} on this machine "
                "(looked with torch.cuda.is_available() and device_count()). Start it where there is one, or serve other "
                "queues: forebay worker --queues cpu"
            )
    on_gpu = [q.name for q in queues if q.capacity.gpu]
    on_cpu = [q.name for q in queues if not q.capacity.gpu]
    plans = [(f"cuda:{i}", on_gpu) for i in range(gpus)] if on_gpu else []
    return plans + ([("cpu", on_cpu)] if on_cpu else [])
