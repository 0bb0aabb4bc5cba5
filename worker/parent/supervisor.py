"""`forebay worker`: one worker process per device of this machine, others for training, and a new one when one dies."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence

from forebay.contract.settings import Settings
from forebay.storage.ledger.connection import Ledger
from forebay.storage.workers import WorkerRegistry
from forebay.worker.parent.devices import WorkerPlan, count_gpus, plan_workers
from forebay.worker.parent.processes import ManagedProcess, ProcessSupervisor, stop_signal

REMOTE_CHILDREN = 4  # each waits for the answers of one model at a time
# glibc gives blocks of more than 32 MiB back to the system when they are freed, and the top of the heap too: a batch whose arrays
# are larger then spends three quarters of its time on having the pages of each made anew. `release_memory` gives them back.
KEEP_FREED_MEMORY = f"glibc.malloc.mmap_threshold={128 << 20}:glibc.malloc.trim_threshold={128 << 20}"
MARGIN_S = 15  # beyond shutdown_grace_s, in which a worker ends its children and itself


def run_workers(settings: Settings, queues: Sequence[str] | None, concurrency: int) -> int:
    """Keep the workers of this machine running until SIGTERM or SIGINT; 1 when one had to be killed, else 0.

    DeviceNotFound when a queue asked for needs a device this machine lacks; InvalidInput for an unknown queue.
    """
    specs = [settings.queue(name) for name in queues] if queues else list(settings.queues.values())
    gpus = count_gpus() if any(queue.capacity.gpu for queue in specs) else 0
    if not queues:  # without a choice: whatever this machine can serve
        specs = settings.served_by_default(gpus)
    workers = name_workers(settings, plan_workers(specs, gpus))
    processes = [_worker(settings, name, plan, i, concurrency) for i, (name, plan) in enumerate(workers)]
    supervisor, stop = ProcessSupervisor(processes), stop_signal()
    while not stop.is_set():
        supervisor.check()
        stop.wait(0.2)
    return 0 if supervisor.stop(settings.shutdown_grace_s + MARGIN_S) else 1


def _worker(settings: Settings, name: str, plan: WorkerPlan, number: int, concurrency: int) -> ManagedProcess:
    """One worker, which gets all its settings through the environment."""
    children = {"cpu": concurrency, "remote": REMOTE_CHILDREN}.get(plan.stem, 1)
    threads = str(settings.torch_threads or max(1, (os.cpu_count() or 1) // children))
    env = (
        {"GLIBC_TUNABLES": KEEP_FREED_MEMORY}
        | settings.child_environment(
            FOREBAY_DEVICE=plan.device,
            FOREBAY_WORKER_NAME=name,
            FOREBAY_TORCH_THREADS=threads,
            FOREBAY_METRICS_PORT=str(settings.metrics_port and settings.metrics_port + number),
            OMP_NUM_THREADS=threads,  # before torch is imported: set_num_threads alone leaves its pool at the number of cores
        )
    )
    command = [sys.executable, "-m", "forebay.worker", ",".join(plan.queues), str(children), str(os.getpid())]
    return ManagedProcess(name, command, env)


def name_workers(settings: Settings, plans: Sequence[WorkerPlan]) -> Iterator[tuple[str, WorkerPlan]]:
    """A name for each worker that no live worker has: cpu@host, gpu0@host, train@host; a second one here is cpu-2@host.

    A name that is set is the first worker's, and the end of the others'.
    """
    host, given = socket.gethostname(), settings.worker_name
    ledger = Ledger(settings.database)
    try:
        taken = {w.name for w in WorkerRegistry(ledger).alive(settings.alive_s)}
    finally:
        ledger.close()
    for i, plan in enumerate(plans):
        free = (f"{plan.stem}{suffix}@{host}" for suffix in ["", *(f"-{n}" for n in range(2, 1000))])
        name = given and (f"{plan.stem}-{given}" if i else given)
        name = name or next(name for name in free if name not in taken)
        taken.add(name)
        yield name, plan
