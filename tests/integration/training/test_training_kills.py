"""Training runs whose trainers, workers and machines are killed, stopped or frozen: what is lost, and that no more changes."""

import os
import random
import signal
import time

import psutil
import pytest

from forebay.contract.job import JobState
from forebay.storage.models.registry import ModelRegistry
from support.training_stack import LONG_S, TrainingStack
from support.waiting import wait_until
from support.worker_stack import Worker

pytestmark = pytest.mark.timeout(900)


def kill(training: TrainingStack, id: str, what: str, worker: Worker, resumed_from: int) -> tuple[int, int]:
    """Kill the `trainer` or the `worker` when no checkpoint is on its way; the step it was at, and that of the last one."""
    wait_until(
        lambda: max(training.saved(id), resumed_from) == training.stored(id), "the last checkpoint is stored", LONG_S
    )
    at, stored = max(training.step(id), resumed_from), training.stored(id)
    if what == "worker":
        training.kill_worker(worker)
    else:
        for process in training.trainers():
            process.kill()
    return at, stored


def figures(training: TrainingStack, id: str) -> dict[str, float]:
    """What a run that has succeeded is told by: its held-out metrics, of its best state, and where its last state stood."""
    last = {point.split: point.values for point in training.runs_of.queries.curve(id)}
    shown = {"held-out": training.result(id)["metrics"]} | last
    return {f"{split} {name}": value for split, values in shown.items() for name, value in values.items()}


def survives(
    training: TrainingStack, kills: list[str], *, epochs: int, every: int, seed: int, longest_s: float
) -> None:
    """A run that is killed so often, at random moments, ends as one that is not, and repeats at most one interval a time."""
    moments = random.Random(seed)
    training.trainer("t0").ready()
    calm = training.train(epochs, every)
    training.await_end(calm)
    wanted = figures(training, calm)
    id = training.train(epochs, every, max_attempts=len(kills) + 1)
    worker, marks = training.workers[-1], []
    for number, what in enumerate(kills, start=1):
        resumed_from = training.stored(id)
        training.await_step(id, resumed_from + 1)
        until = time.monotonic() + moments.uniform(0.0, longest_s)
        wait_until(
            lambda until=until: time.monotonic() > until or training.store.queries.get(id).state.final, "its moment"
        )
        marks.append(kill(training, id, what, worker, resumed_from))
        if what == "worker":
            worker = training.trainer(f"t{number}").ready()
        attempt = number + 1
        wait_until(
            lambda attempt=attempt: training.store.queries.attempts([id]).get(id) == attempt,
            f"attempt {attempt}",
            LONG_S,
        )
        wait_until(lambda: training.trainers(), "another trainer")
    training.await_end(id)
    got = figures(training, id)
    print("killed at, stored:", marks, "resumed from:", training.resumed(), "figures:", got, "wanted:", wanted)  # noqa: T201
    assert got == pytest.approx(wanted, abs=1e-3)
    assert training.resumed() == [stored for _, stored in marks if stored]
    assert all(at - stored <= every for at, stored in marks)
    steps = [point.step for point in training.runs_of.queries.curve(id) if point.split == "train"]
    assert steps == sorted(set(steps))


def test_a_killed_trainer_and_a_killed_worker_cost_one_interval_each_and_change_nothing(
    training: TrainingStack,
) -> None:
    survives(training, ["trainer", "worker"], epochs=24, every=400, seed=1, longest_s=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_five_kills_at_random_moments_cost_one_interval_each_and_change_nothing(
    training: TrainingStack, seed: int
) -> None:
    kills = ["trainer", "worker", "trainer", "worker", "trainer"]
    random.Random(seed).shuffle(kills)
    survives(training, kills, epochs=80, every=600, seed=seed, longest_s=8.0)


def test_torchrun_killed_takes_its_trainer_with_it_and_the_run_goes_on(training: TrainingStack) -> None:
    training.trainer().ready()
    id = training.train(500, every=100, nproc=2)
    training.await_step(id, 100)
    wait_until(lambda: training.stored(id), "a checkpoint is stored")
    [torchrun] = [process for process in training.family() if process not in training.trainers()]
    trainers = training.trainers()
    torchrun.kill()
    _, left = psutil.wait_procs(trainers, timeout=60)
    assert left == []
    wait_until(lambda: training.resumed(), "the next attempt has begun")
    assert "signal 9 (SIGKILL)" in training.store.queries.past_attempts(id)[0].reason
    training.client.job(id).cancel()
    training.await_end(id, JobState.CANCELED)


def test_a_worker_told_to_stop_hands_its_run_on_from_where_it_stands(training: TrainingStack) -> None:
    first = training.trainer("t1").ready()
    id = training.train(40, every=100_000)
    training.await_step(id)
    assert first.terminate() == 0
    info = training.store.queries.get(id)
    assert (info.state, info.attempt) == (JobState.QUEUED, 0)
    stored = training.stored(id)
    assert stored > 0
    training.trainer("t2").ready()
    training.await_end(id)
    assert training.resumed() == [stored]
    assert training.store.queries.get(id).attempt == 1


@pytest.mark.slow
def test_a_worker_frozen_for_its_lease_cannot_register_what_it_trained(training: TrainingStack) -> None:
    frozen = training.trainer("t1").ready()
    id = training.train(20, every=200)
    training.await_step(id, 200)
    frozen.freeze()
    training.trainer("t2").ready()
    training.await_end(id)
    frozen.thaw()
    wait_until(lambda: "lease_lost" in frozen.said(), "it has noticed")
    assert [version.version for version in ModelRegistry(training.ledger).versions("sides")] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["the node's", "the run's"])
def test_a_machine_that_dies_costs_the_run_an_attempt_and_no_more(training: TrainingStack, whose: str) -> None:
    for name in ("t1", "t2"):
        training.trainer(name).ready()
    id = training.train(40, every=200, nodes=2)
    training.await_step(id, 400)
    [node] = training.nodes(id)
    name = node.worker if whose == "the node's" else training.store.queries.get(id).worker
    victim = next(worker for worker in training.workers if f"{worker.name}@test" == name)
    os.killpg(victim.process.pid, signal.SIGKILL)
    training.trainer("t3").ready()
    training.await_end(id)
    assert len(training.nodes(id)) == 2
    wait_until(lambda: all(info.state.final for info in training.nodes(id)), "the node jobs have ended")
    assert training.resumed()[0] >= 200
