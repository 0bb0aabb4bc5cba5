"""A trainer as its worker sees it: the command, its environment, the process, and what it said last.

It is one process of `forebay.worker.trainer.process`, or several under torchrun, one per device; all of them die with this
process (die_with_parent.py). Knows processes and folders, neither ledger nor queue.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog

from forebay.contract.requests.training import TrainRequest
from forebay.contract.setting_kinds import mask_password
from forebay.contract.settings import Settings
from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.kinds.train.die_with_parent import OWN_PID
from forebay.worker.last_lines import MAX_LINE, last_lines

log = structlog.get_logger()

DIE_WITH_PARENT, TORCHRUN = "forebay.worker.kinds.train.die_with_parent", "torch.distributed.run"
TRAINER = "forebay.worker.trainer.process"
LAST_ADDRESS = "~"  # sorts behind every address
CHECKPOINT_SHARE = 0.6  # of shutdown_grace_s
LOG_WINDOW_S, LOG_LINES = 10.0, 20  # so many of a trainer's lines go into the log in so many seconds
LAST_OUTPUT_S = 2.0
KILL_WAIT_S = 30.0
JOIN_MARGIN_S = 60  # beyond the run's own wait for its machines: it gives up first, and says why
KEPT_LINES = 200  # torchrun's own report of a failure takes some forty
_EXIT_CODE = re.compile(r"exitcode\s*:\s*(-?\d+)")
USAGE = 2  # argparse's, with a line that begins with "usage:"
_USAGE = re.compile(r"usage: |\S+: error: ")
_TORCHRUN_LINE = re.compile(r"[EW]\d{4} .*torch/distributed/elastic")


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the machines of one run meet, by torchrun's c10d backend; the run's own worker hosts it.

    `address` is this machine's for the others. `wait_s` is how long they wait for one another.
    """

    endpoint: str
    id: str
    nodes: int
    host: bool
    address: str
    wait_s: float


def command(
    folder: Path, nproc: int, allowed: Sequence[str], rendezvous: Rendezvous | None = None, module: str = TRAINER
) -> list[str]:
    """What starts the trainer of `folder` with `nproc` processes, which dies with this process."""
    dies_with_us = [sys.executable, "-m", DIE_WITH_PARENT, str(os.getpid())]
    trainer = [module, str(folder), *(["--allowed", ",".join(allowed)] if allowed else [])]
    if nproc == 1 and rendezvous is None:  # nobody to meet: torchrun would only take seconds to load torch once more
        return [*dies_with_us, *trainer]
    return [
        *dies_with_us, TORCHRUN, f"--nproc-per-node={nproc}", "--max-restarts=0",
        *_rendezvous_arguments(rendezvous), "-m", DIE_WITH_PARENT, OWN_PID, *trainer,
    ]  # fmt: skip


def _rendezvous_arguments(rendezvous: Rendezvous | None) -> list[str]:
    if rendezvous is None:
        return ["--standalone"]
    # torchrun numbers the machines in the order of their addresses. Process 0 tells the events, so it must run beside whoever
    # holds the job's lease; and only its address is ever connected to.
    address = rendezvous.address if rendezvous.host else f"{LAST_ADDRESS}{rendezvous.address}"
    conf = f"is_host={int(rendezvous.host)},join_timeout={round(rendezvous.wait_s) + JOIN_MARGIN_S},close_timeout=10"
    return [
        f"--nnodes={rendezvous.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={rendezvous.endpoint}",
        f"--rdzv-id={rendezvous.id}", f"--rdzv-conf={conf}", f"--local-addr={address}",
    ]  # fmt: skip


def processes(settings: Settings, nproc: int, gpus: float) -> int:
    """How many processes a trainer has on this machine: what was asked for, or one per device of the queue."""
    return nproc if settings.device == "cpu" else max(1, int(gpus))


def environment(settings: Settings, nproc: int, grace_s: float) -> dict[str, str]:
    """The trainer's, without the addresses of ledger and queue, which it does not need: it may run a user's code."""
    threads = max(1, (settings.torch_threads or os.cpu_count() or 1) // nproc)
    own = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    # How long torchrun leaves its processes: an argument that older ones do not know would be refused, a variable is passed over.
    own |= {"PET_SHUTDOWN_TIMEOUT": str(max(1, round(grace_s)))}
    given = settings.child_environment(**own)
    kept = {name: value for name, value in given.items() if name not in settings.as_environment()}
    return kept | {"CUDA_VISIBLE_DEVICES": _devices(settings.device, nproc, given)}


def _devices(device: str, count: int, given: Mapping[str, str]) -> str:
    """CUDA_VISIBLE_DEVICES: those of this worker; none for a worker on the CPU."""
    if device == "cpu":
        return ""
    first = int(device.partition(":")[2])
    names = [name for name in given.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    wanted = range(first, first + count)
    return ",".join(names[i] if names else str(i) for i in wanted if not names or i < len(names))


class Launcher:
    """Starts trainers for one worker. `module` is what each process of a trainer runs."""

    def __init__(self, settings: Settings, module: str = TRAINER) -> None:
        self._settings, self._module = settings, module
        self.grace_s = settings.shutdown_grace_s * CHECKPOINT_SHARE  # that a trainer has for its last checkpoint

    def start(
        self, job: ClaimedJob, request: TrainRequest, folder: Path, rendezvous: Rendezvous | None = None
    ) -> Trainer:
        """The trainer of a folder that is ready for it."""
        settings = self._settings
        queue = settings.queues.get(job.queue)
        nproc = processes(settings, request.nproc, queue.capacity.gpu if queue is not None else 1)
        words = command(folder, nproc, settings.allowed_python_models, rendezvous, self._module)
        trainer = Trainer(words, environment(settings, nproc, self.grace_s), job.id)
        log.info(
            "training_started", job=job.id, kind=str(job.kind), model=job.model, recipe=request.recipe, pid=trainer.pid,
            worker=settings.worker_name, attempt=job.attempt, processes=nproc, device=settings.device,
        )  # fmt: skip
        return trainer


class Trainer:
    """A running trainer. What it writes is read by a thread: the last lines are kept, a few a second go into the log."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], job: str) -> None:
        self._job = job
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._killed_for: str | None = None
        self._process = subprocess.Popen(
            command, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, name="trainer", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process that was started; those that train are its children."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to write a checkpoint and end."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self, why: str) -> None:
        """End it and all that it has started, at once."""
        self._killed_for = self._killed_for or why
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            for process in (*root.children(recursive=True), root):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        with suppress(subprocess.TimeoutExpired):  # a process that hangs in a driver outlives even this for a while
            self._process.wait(KILL_WAIT_S)

    def close(self) -> None:
        if self.status is None:
            self.kill("left behind")
        self._reader.join(LAST_OUTPUT_S)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()

    @property
    def misused(self) -> bool:
        """Whether it ended because it does not know its own arguments: started again, it would end so again."""
        self._reader.join(LAST_OUTPUT_S)
        lines = list(self._lines)
        return self._killed_for is None and exit_code(self.status, lines) == USAGE and any(map(_USAGE.match, lines))

    def evidence(self) -> str:
        self._reader.join(LAST_OUTPUT_S)
        lines = list(self._lines)
        said = last_lines(_without_torchrun(lines))
        how = self._killed_for or exit_reason(self.status, lines)
        return f"the trainer ended: {how}" + (f"; its last lines:\n{said}" if said else "")

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        window, told, silent = time.monotonic(), 0, 0
        for data in iter(self._process.stdout.readline, b""):
            line = mask_password(data[:MAX_LINE].decode("utf-8", "replace").rstrip())
            if not line:
                continue
            self._lines.append(line)
            if time.monotonic() - window > LOG_WINDOW_S:
                window, told = time.monotonic(), 0
            if told >= LOG_LINES:
                silent += 1
                continue
            log.info("trainer_output", job=self._job, line=line, **({"left_out": silent} if silent else {}))
            told, silent = told + 1, 0


def exit_reason(status: int | None, lines: Sequence[str]) -> str:
    """`signal 9 (SIGKILL)` or `exit status 1`: of the process that trained, which torchrun tells in its report."""
    code = exit_code(status, lines)
    if code is None or code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"


def exit_code(status: int | None, lines: Sequence[str]) -> int | None:
    """Of the process that trained, which torchrun tells in its report; negative for a signal."""
    told = [int(found[1]) for line in lines if (found := _EXIT_CODE.search(line))]
    return told[0] if told else status


def _without_torchrun(lines: Sequence[str]) -> list[str]:
    """What the trainer itself said: torchrun's own traceback and report follow it and would push it out."""
    first = next((i for i, line in enumerate(lines) if _TORCHRUN_LINE.match(line)), len(lines))
    return list(lines[:first]) or list(lines)
