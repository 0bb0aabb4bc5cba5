"""The further machines of a training run: what a node job asks for, and the run's own look at those that come.

The worker that claimed the run hosts torchrun's rendezvous and adds a node job for each machine more; whoever claims one joins.
Process 0 runs beside whoever holds the run's lease. Nothing here starts a process.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import structlog

from forebay.contract.errors import BrokerUnavailable
from forebay.contract.job import JobKind, JobState, new_ids
from forebay.contract.requests.request import Request, encode
from forebay.contract.requests.training import TrainRequest
from forebay.contract.settings import Settings
from forebay.storage.jobs.records import ClaimedJob, NewJob
from forebay.storage.training.store import TrainingStore
from forebay.storage.workers import WorkerRegistry
from forebay.worker.execution.context import ChildContext
from forebay.worker.kinds.train.launch import Rendezvous
from forebay.worker.kinds.train.stop_check import StopReason

log = structlog.get_logger()

FIRST = 0  # the priority of a node job: a machine is taken already, and waits
LOOPBACK = "127.0.0.1"
SETTLE_S = 2.0  # until the ledger tells of a machine whose end has ended the others' trainers


class NodeRequest(Request, frozen=True):
    """What a node job asks for: to join attempt `attempt` of `run`, from the same checkpoint, with the same request."""

    run: str
    attempt: int
    endpoint: str
    wait_s: float
    checkpoint: str | None
    request: TrainRequest

    def rendezvous(self, *, host: bool, address: str) -> Rendezvous:
        """Where its machines meet; `address` is this one's."""
        return Rendezvous(self.endpoint, f"{self.run}-{self.attempt}", self.request.nodes, host, address, self.wait_s)


class PeerNodes:
    """The node jobs of one attempt, as the run's own worker sees them."""

    def __init__(
        self, context: ChildContext, job: ClaimedJob, wait_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._context, self._jobs, self._job = context, context.jobs, job
        self._runs = TrainingStore(context.ledger)
        self._wait_s, self._clock = wait_s, clock
        self._began = clock()
        self._ids: list[str] = []
        self._ran: set[str] = set()
        self._told = ""

    def submit(self, request: NodeRequest) -> None:
        """Add the node jobs, and send them."""
        inline, ref = self._context.payloads.store(encode(request))
        job, self._ids = self._job, new_ids(request.request.nodes - 1)
        nodes = [
            NewJob(
                id, JobKind.NODE, job.model, job.version, job.queue, FIRST, 1, parent_id=job.id, input=inline, input_ref=ref
            )
            for id in self._ids
        ]  # fmt: skip
        routed_jobs = self._runs.add_nodes(job, nodes)
        try:
            self._context.dispatcher.send_jobs(routed_jobs)
        except BrokerUnavailable as error:  # the sweeper sends them
            self._jobs.mark_unsent(self._ids)
            log.warning("send_failed", jobs=len(routed_jobs), error=str(error))

    def reason(self) -> StopReason | None:
        """Why the run cannot go on, if it cannot; what it waits for is shown as its progress."""
        states = self._jobs.queries.states(self._ids)
        running = {id for id, state in states.items() if state is JobState.RUNNING}
        self._ran |= running
        if any(state in (JobState.FAILED, JobState.EXPIRED) for state in states.values()):
            return StopReason.PEER_LOST
        if any(
            state is JobState.CANCELED or (state is JobState.QUEUED and id in self._ran) for id, state in states.items()
        ):
            return StopReason.PEER_LEFT
        waiting = sum(state is JobState.QUEUED for state in states.values())
        if not waiting:
            return None
        self._show_wait(waiting)
        if self._runs.queries.older_run_waits(self._job):
            return StopReason.YIELDS
        return StopReason.TOO_FEW_NODES if self._clock() - self._began > self._wait_s else None

    def settled_reason(self) -> StopReason | None:
        """The same once the trainer has ended of itself: the ledger tells what became of the others a little later."""
        until = self._clock() + SETTLE_S
        while self._clock() < until:
            reason = self.reason()
            if reason in (StopReason.PEER_LOST, StopReason.PEER_LEFT):
                return reason
            time.sleep(0.1)
        return None

    def evidence(self) -> str:
        """What ended those that failed."""
        errors = [info.error for info in map(self._jobs.queries.get, self._ids) if info.error is not None]
        return "; ".join(f"another machine of the run: {error.message}" for error in errors)

    def cancel(self) -> None:
        """This attempt has ended."""
        self._runs.cancel_nodes(self._ids)

    def _show_wait(self, missing: int) -> None:
        message = (
            f"waiting for {missing} of {len(self._ids) + 1} machines, {self._wait_s:g} s at most: "
            f"start a worker for queue {self._job.queue}"
        )
        if message != self._told:
            self._runs.set_message(self._job, message)
            self._told = message


def node_request(
    job: ClaimedJob, request: TrainRequest, checkpoint: str | None, host: str, wait_s: float
) -> NodeRequest:
    """What the node jobs of this attempt ask for; the machines meet on a free port of `host`."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    return NodeRequest(job.id, job.attempt, f"{host}:{port}", wait_s, checkpoint, request)


def rendezvous_host(settings: Settings, workers: WorkerRegistry, queue: str) -> str:
    """This machine's address for the others; loopback when all workers of the queue are on this machine."""
    if settings.rendezvous_host:
        return settings.rendezvous_host
    own = socket.gethostname()
    hosts = {worker.host for worker in workers.alive(settings.alive_s) if queue in worker.queues}
    return LOOPBACK if hosts <= {own} else own


def own_address(settings: Settings, endpoint: str) -> str:
    """This machine's address for the others, when the run's own is `endpoint`."""
    host = endpoint.rpartition(":")[0]
    return settings.rendezvous_host or (LOOPBACK if host == LOOPBACK else socket.gethostname())
