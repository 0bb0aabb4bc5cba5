"""The further machines of a training run: what a node job asks for, and the run's own look at those that come.

The worker that claimed the run hosts torchrun's rendezvous and adds a node job for each machine more; whoever claims one joins.
Process 0 runs beside whoever holds the run's lease. Nothing here starts a process.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind, JobState, new_ids
from forebay.contract.requests.training import TrainRequest
from forebay.contract.settings import Settings
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.jobs.records import ClaimedJob, NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.training.nodes import NodeStore
from forebay.storage.training.store import TrainingStore
from forebay.storage.workers import WorkerRegistry
from forebay.worker.kinds.train.launch import Meeting

# Why a run's own trainer is ended: another machine's was lost; another machine stopped; an older run waits for machines too;
# too few have come.
PEER_LOST, PEER_LEFT, YIELDS, TOO_FEW = "peer lost", "peer left", "yields", "too few"
FIRST = 0  # the priority of a node job: a machine holds its slot already, and waits
LOOPBACK = "127.0.0.1"
SETTLE_S = 2.0  # for the word of a machine whose end has ended the others' trainers


@dataclass(frozen=True, slots=True)
class NodeTask:
    """What a node job asks for: to join attempt `attempt` of `run`, from the same checkpoint, with the same request."""

    run: str
    attempt: int
    endpoint: str
    nodes: int
    wait_s: float
    checkpoint: str | None
    request: str

    def dump(self) -> bytes:
        """As bytes."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, data: bytes) -> NodeTask:
        """From those bytes; InvalidInput when they are none."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"these bytes are no node of a training run: {type(error).__name__}") from error

    def meeting(self, *, host: bool, own: str) -> Meeting:
        """Where its machines meet."""
        return Meeting(self.endpoint, f"{self.run}-{self.attempt}", self.nodes, host, own, self.wait_s)


class Companions:
    """The node jobs of one attempt, as the run's own worker sees them."""

    def __init__(
        self, nodes: NodeStore, jobs: JobStore, runs: TrainingStore, job: ClaimedJob, wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._nodes, self._jobs, self._runs, self._job = nodes, jobs, runs, job
        self._wait_s, self._clock = wait_s, clock
        self._began = clock()
        self._ids: list[str] = []
        self._ran: set[str] = set()
        self._told = ""

    def summon(self, task: NodeTask, payloads: Payloads) -> list[RoutedJob]:
        """Add the node jobs; routed_jobs to send them with."""
        inline, ref = payloads.store(task.dump())
        job, self._ids = self._job, new_ids(task.nodes - 1)
        made = (
            NewJob(
                id, JobKind.NODE, job.model, job.version, job.queue, FIRST, 1, parent_id=job.id, input=inline, input_ref=ref
            )
            for id in self._ids
        )  # fmt: skip
        return self._nodes.summon(job, list(made))

    def reason(self) -> str | None:
        """Why the run cannot go on, if it cannot; what it waits for is told in its progress."""
        states = self._jobs.states(self._ids)
        running = {id for id, state in states.items() if state is JobState.RUNNING}
        self._ran |= running
        if any(state in (JobState.FAILED, JobState.EXPIRED) for state in states.values()):
            return PEER_LOST
        if any(
            state is JobState.CANCELED or (state is JobState.QUEUED and id in self._ran) for id, state in states.items()
        ):
            return PEER_LEFT
        waiting = [id for id, state in states.items() if state is JobState.QUEUED]
        if not waiting:
            return None
        self._tell(len(self._ids) + 1, len(waiting))
        if self._nodes.ahead(self._job):
            return YIELDS
        return TOO_FEW if self._clock() - self._began > self._wait_s else None

    def settled(self) -> str | None:
        """The same once the trainer has ended by itself: what became of the others is known a little later."""
        until = self._clock() + SETTLE_S
        while self._clock() < until:
            reason = self.reason()
            if reason in (PEER_LOST, PEER_LEFT):
                return reason
            time.sleep(0.1)
        return None

    def why(self) -> str:
        """What ended those that failed."""
        errors = [info.error for info in map(self._jobs.get, self._ids) if info.error is not None]
        return "; ".join(f"another machine of the run: {error.message}" for error in errors)

    def dismiss(self) -> None:
        """This attempt has ended."""
        self._nodes.dismiss(self._ids)

    def _tell(self, of: int, missing: int) -> None:
        queue = self._job.queue
        words = f"waiting for {missing} of {of} machines, {self._wait_s:g} s at most: start a worker for queue {queue}"
        if words != self._told:
            self._runs.said(self._job, words)
            self._told = words


def task_of(job: ClaimedJob, request: TrainRequest, checkpoint: str | None, host: str, wait_s: float) -> NodeTask:
    """What the node jobs of this attempt ask for."""
    endpoint = f"{host}:{_free_port()}"
    return NodeTask(job.id, job.attempt, endpoint, request.nodes, wait_s, checkpoint, request.dump().decode())


def rendezvous_host(settings: Settings, workers: WorkerRegistry, queue: str) -> str:
    """This machine's address for the others; loopback when all workers of the queue are on this machine."""
    if settings.rendezvous_host:
        return settings.rendezvous_host
    own = socket.gethostname()
    hosts = {worker.host for worker in workers.alive(3 * settings.heartbeat_s) if queue in worker.queues}
    return LOOPBACK if hosts <= {own} else own


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def own_address(settings: Settings, endpoint: str) -> str:
    """This machine's address for the others, when the run's own is `endpoint`."""
    host = endpoint.rpartition(":")[0]
    return settings.rendezvous_host or (LOOPBACK if host == LOOPBACK else socket.gethostname())
