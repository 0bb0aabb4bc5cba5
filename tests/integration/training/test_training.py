"""Training jobs on real workers with the real trainer: what is left when trainers, workers and machines come and go."""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from forebay.contract.job import JobState
from forebay.contract.references import ModelRef
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.workers import WorkerRegistry
from support.training_stack import STEPS, TrainingStack
from support.waiting import wait_until
from support.worker_stack import Worker

LONG_S = 300  # a loaded machine is no reason to fail

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def stack(tmp_path: Path, broker: str) -> Iterator[TrainingStack]:
    with closing(TrainingStack(tmp_path, broker)) as stack:
        yield stack
        family = stack.family()
    _, left = psutil.wait_procs(family, timeout=60)
    assert left == []


def ended(stack: TrainingStack, id: str, state: JobState = JobState.SUCCEEDED) -> None:
    """Wait for the job's end, which must be this one."""
    wait_until(lambda: stack.store.queries.get(id).state.final, f"job {id} has ended", LONG_S)
    info = stack.store.queries.get(id)
    assert info.state is state, info.error


def begun(stack: TrainingStack, id: str, steps: int = 1) -> None:
    """Wait for its trainer to have gone so far."""
    wait_until(lambda: stack.step(id) >= steps, f"job {id} has gone {steps} steps", LONG_S)


def kill_worker(stack: TrainingStack, worker: Worker) -> None:
    """End a worker process as the kernel would; no trainer of it may go on."""
    family = stack.family()
    worker.process.kill()
    worker.process.wait(120)
    _, left = psutil.wait_procs(family, timeout=60)
    assert left == []


def kill(stack: TrainingStack, id: str, what: str, worker: Worker, resumed_from: int) -> tuple[int, int]:
    """Kill the `trainer` or the `worker` when no checkpoint is on its way; the step it was at, and that of the last one."""
    wait_until(lambda: max(stack.saved(id), resumed_from) == stack.stored(id), "the last checkpoint is stored", LONG_S)
    at, stored = max(stack.step(id), resumed_from), stack.stored(id)
    if what == "worker":
        kill_worker(stack, worker)
    else:
        for process in stack.trainers():
            process.kill()
    return at, stored


def figures(stack: TrainingStack, id: str) -> dict[str, float]:
    """What a run that has succeeded is told by: its held-out metrics, of its best state, and where its last state stood."""
    last = {point.split: point.values for point in stack.runs_of.queries.curve(id)}
    shown = {"held-out": stack.result(id)["metrics"]} | last
    return {f"{split} {name}": value for split, values in shown.items() for name, value in values.items()}


def survives(stack: TrainingStack, kills: list[str], *, epochs: int, every: int, seed: int, longest_s: float) -> None:
    """A run that is killed so often, at random moments, ends as one that is not, and repeats at most one interval a time."""
    moments = random.Random(seed)
    stack.trainer("t0").ready()
    calm = stack.train(epochs, every)
    ended(stack, calm)
    wanted = figures(stack, calm)
    id = stack.train(epochs, every, max_attempts=len(kills) + 1)
    worker, marks = stack.workers[-1], []
    for number, what in enumerate(kills, start=1):
        resumed_from = stack.stored(id)
        begun(stack, id, resumed_from + 1)
        until = time.monotonic() + moments.uniform(0.0, longest_s)
        wait_until(
            lambda until=until: time.monotonic() > until or stack.store.queries.get(id).state.final, "its moment"
        )
        marks.append(kill(stack, id, what, worker, resumed_from))
        if what == "worker":
            worker = stack.trainer(f"t{number}").ready()
        attempt = number + 1
        wait_until(
            lambda attempt=attempt: stack.store.queries.attempts([id]).get(id) == attempt, f"attempt {attempt}", LONG_S
        )
        wait_until(lambda: stack.trainers(), "another trainer")
    ended(stack, id)
    got = figures(stack, id)
    print("killed at, stored:", marks, "resumed from:", stack.resumed(), "figures:", got, "wanted:", wanted)  # noqa: T201
    assert got == pytest.approx(wanted, abs=1e-3)
    assert stack.resumed() == [stored for _, stored in marks if stored]
    assert all(at - stored <= every for at, stored in marks)
    steps = [point.step for point in stack.runs_of.queries.curve(id) if point.split == "train"]
    assert steps == sorted(set(steps))


def test_a_job_trains_while_predictions_of_the_same_model_go_on(stack: TrainingStack) -> None:
    stack.trainer().ready()
    stack.worker("cpu").ready()
    first = stack.train(2, alias="champion")
    ended(stack, first)
    told = stack.result(first)
    assert (told["version"], told["promoted"]) == (1, True)
    assert told["metrics"]["accuracy"] > 0.85
    id = stack.train(30, alias="champion")
    begun(stack, id)
    row = {f"x{i}": 0.5 for i in range(8)}
    assert stack.client.predict("sides@champion", row).result(120)["label"] in ("yes", "no")
    assert stack.store.queries.get(id).state is JobState.RUNNING
    info = wait_until(
        lambda: "rows/s" in (found := stack.store.queries.get(id)).progress.message and found, "its progress"
    )
    assert info.progress.total == 30 * STEPS
    assert "epoch" in info.progress.message
    ended(stack, id)
    version = ModelRegistry(stack.ledger).get(ModelRef("sides", stack.result(id)["version"]))
    assert version.metadata["lineage"]["parent"] == "sides/1"
    assert version.metadata["lineage"]["rows"]["train"] == 2800
    assert stack.client.predict(version.ref, row).result(120)["label"] in ("yes", "no")


def test_a_killed_trainer_and_a_killed_worker_cost_one_interval_each_and_change_nothing(stack: TrainingStack) -> None:
    survives(stack, ["trainer", "worker"], epochs=30, every=500, seed=1, longest_s=3.0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_five_kills_at_random_moments_cost_one_interval_each_and_change_nothing(
    stack: TrainingStack, seed: int
) -> None:
    kills = ["trainer", "worker", "trainer", "worker", "trainer"]
    random.Random(seed).shuffle(kills)
    survives(stack, kills, epochs=80, every=600, seed=seed, longest_s=8.0)


def test_torchrun_killed_takes_its_trainer_with_it_and_the_run_goes_on(stack: TrainingStack) -> None:
    stack.trainer().ready()
    id = stack.train(20, every=200)
    begun(stack, id, 200)
    [torchrun] = [process for process in stack.family() if process not in stack.trainers()]
    trainers = stack.trainers()
    torchrun.kill()
    _, left = psutil.wait_procs(trainers, timeout=60)
    assert left == []
    ended(stack, id)
    assert "signal 9 (SIGKILL)" in stack.store.queries.past_attempts(id)[0].reason


def test_a_worker_told_to_stop_hands_its_run_on_from_where_it_stands(stack: TrainingStack) -> None:
    first = stack.trainer("t1").ready()
    id = stack.train(60, every=100_000)
    begun(stack, id, 200)
    assert first.terminate() == 0
    info = stack.store.queries.get(id)
    assert (info.state, info.attempt) == (JobState.QUEUED, 0)
    stored = stack.stored(id)
    assert stored > 0
    stack.trainer("t2").ready()
    ended(stack, id)
    assert stack.resumed() == [stored]
    assert stack.store.queries.get(id).attempt == 1


def test_a_canceled_run_stops_its_trainer(stack: TrainingStack) -> None:
    stack.trainer().ready()
    id = stack.train(500)
    begun(stack, id)
    stack.client.job(id).cancel()
    ended(stack, id, JobState.CANCELED)
    wait_until(lambda: not stack.family(), "its trainer has ended")


@pytest.mark.slow
def test_a_worker_frozen_for_its_lease_cannot_register_what_it_trained(stack: TrainingStack) -> None:
    frozen = stack.trainer("t1").ready()
    id = stack.train(20, every=200)
    begun(stack, id, 200)
    frozen.freeze()
    stack.trainer("t2").ready()
    ended(stack, id)
    frozen.thaw()
    wait_until(lambda: "lease_lost" in frozen.said(), "it has noticed")
    assert [version.version for version in ModelRegistry(stack.ledger).versions("sides")] == [1]


def test_two_runs_are_trained_by_two_workers_at_once(stack: TrainingStack) -> None:
    stack.trainer("t1").ready()
    ids = [stack.train(200), stack.train(200)]
    begun(stack, ids[0])
    stack.trainer("t2").ready()
    wait_until(lambda: len(stack.store.queries.attempts(ids)) == 2, "both run")
    assert {stack.store.queries.get(id).worker for id in ids} == {"t1@test", "t2@test"}
    for id in ids:
        stack.client.job(id).cancel()
        ended(stack, id, JobState.CANCELED)


def test_a_run_on_two_machines_is_one_run(stack: TrainingStack) -> None:
    stack.trainer("t1").ready()
    id = stack.train(5, nodes=2)
    waits = wait_until(
        lambda: "waiting for 1 of 2 machines" in stack.store.queries.get(id).progress.message, "it waits"
    )
    assert waits
    stack.trainer("t2").ready()
    ended(stack, id)
    [node] = stack.nodes(id)
    assert {node.worker, stack.store.queries.get(id).worker} == {"t1@test", "t2@test"}
    wait_until(lambda: stack.store.queries.get(node.id).state.final, "the node job has ended")
    alone = stack.train(5, nproc=2)
    ended(stack, alone)
    assert stack.result(id)["metrics"] == pytest.approx(stack.result(alone)["metrics"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["the node's", "the run's"])
def test_a_machine_that_dies_costs_the_run_an_attempt_and_no_more(stack: TrainingStack, whose: str) -> None:
    for name in ("t1", "t2"):
        stack.trainer(name).ready()
    id = stack.train(40, every=200, nodes=2)
    begun(stack, id, 400)
    [node] = stack.nodes(id)
    name = node.worker if whose == "the node's" else stack.store.queries.get(id).worker
    victim = next(worker for worker in stack.workers if f"{worker.name}@test" == name)
    os.killpg(victim.process.pid, signal.SIGKILL)
    stack.trainer("t3").ready()
    ended(stack, id)
    assert len(stack.nodes(id)) == 2
    wait_until(lambda: all(info.state.final for info in stack.nodes(id)), "the node jobs have ended")
    assert stack.resumed()[0] >= 200


def test_a_run_whose_machines_do_not_come_says_so_and_fails_in_the_end(tmp_path: Path, broker: str) -> None:
    with closing(TrainingStack(tmp_path, broker, NODE_WAIT_S="3")) as stack:
        stack.trainer().ready()
        id = stack.train(5, nodes=2, max_attempts=1)
        ended(stack, id, JobState.FAILED)
        error = stack.store.queries.get(id).error
        assert error is not None
        assert error.type == "TooFewWorkers"
        assert "start more workers for queue train" in error.message
        wait_until(lambda: all(info.state is JobState.CANCELED for info in stack.nodes(id)), "its node jobs have ended")
        wait_until(lambda: not stack.family(), "its trainer has ended")


def test_forebay_worker_trains_in_a_worker_of_its_own(stack: TrainingStack) -> None:
    stack.supervisor("cpu,train")
    workers = WorkerRegistry(stack.ledger)
    wait_until(lambda: len(workers.alive(30)) == 2, "two workers")
    assert {w.name.partition("@")[0]: w.queues for w in workers.alive(30)} == {"cpu": ("cpu",), "train": ("train",)}


def test_a_worker_that_only_trains_does_not_load_torch_itself(stack: TrainingStack) -> None:
    worker = stack.trainer().ready()
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in worker.children()]
    assert maps
    assert not any("libtorch" in text for text in maps)
