"""Training jobs on real workers with the real trainer, alone, beside predictions, and on several machines."""

from contextlib import closing
from pathlib import Path

import pytest

from forebay.contract.job import JobState
from forebay.contract.references import ModelRef
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.workers import WorkerRegistry
from support.training_stack import STEPS, TrainingStack
from support.waiting import wait_until

pytestmark = pytest.mark.timeout(900)


def test_a_job_trains_while_predictions_of_the_same_model_go_on(training: TrainingStack) -> None:
    training.trainer().ready()
    training.worker("cpu").ready()
    first = training.train(2, alias="champion")
    training.await_end(first)
    told = training.result(first)
    assert (told["version"], told["promoted"]) == (1, True)
    assert told["metrics"]["accuracy"] > 0.85
    row = {f"x{i}": 0.5 for i in range(8)}
    training.client.predict("sides@champion", row).result(120)  # the model is loaded
    id = training.train(15, alias="champion")
    training.await_step(id)
    assert training.client.predict("sides@champion", row).result(120)["label"] in ("yes", "no")
    assert training.store.queries.get(id).state is JobState.RUNNING
    info = wait_until(
        lambda: "rows/s" in (found := training.store.queries.get(id)).progress.message and found, "its progress"
    )
    assert info.progress.total == 15 * STEPS
    assert "epoch" in info.progress.message
    training.await_end(id)
    version = ModelRegistry(training.ledger).get(ModelRef("sides", training.result(id)["version"]))
    assert version.metadata["lineage"]["parent"] == "sides/1"
    assert version.metadata["lineage"]["rows"]["train"] == 2800
    assert training.client.predict(version.ref, row).result(120)["label"] in ("yes", "no")


def test_two_runs_are_trained_by_two_workers_at_once_and_a_cancel_stops_their_trainers(training: TrainingStack) -> None:
    training.trainer("t1").ready()
    ids = [training.train(500), training.train(500)]
    training.await_step(ids[0])
    training.trainer("t2").ready()
    wait_until(lambda: len(training.store.queries.attempts(ids)) == 2, "both run")
    assert {training.store.queries.get(id).worker for id in ids} == {"t1@test", "t2@test"}
    for id in ids:
        training.client.job(id).cancel()
        training.await_end(id, JobState.CANCELED)
    wait_until(lambda: not training.family(), "their trainers have ended")


def test_a_run_on_two_machines_is_one_run(training: TrainingStack) -> None:
    training.trainer("t1").ready()
    id = training.train(5, nodes=2)
    waits = wait_until(
        lambda: "waiting for 1 of 2 machines" in training.store.queries.get(id).progress.message, "it waits"
    )
    assert waits
    training.trainer("t2").ready()
    training.await_end(id)
    [node] = training.nodes(id)
    assert {node.worker, training.store.queries.get(id).worker} == {"t1@test", "t2@test"}
    wait_until(lambda: training.store.queries.get(node.id).state.final, "the node job has ended")
    alone = training.train(5)
    training.await_end(alone)
    assert training.result(id)["metrics"] == pytest.approx(training.result(alone)["metrics"], abs=1e-3)


def test_a_run_whose_machines_do_not_come_says_so_and_fails_in_the_end(tmp_path: Path, broker: str) -> None:
    with closing(TrainingStack(tmp_path, broker, NODE_WAIT_S="3")) as training:
        training.trainer().ready()
        id = training.train(5, nodes=2, max_attempts=1)
        training.await_end(id, JobState.FAILED)
        error = training.store.queries.get(id).error
        assert error is not None
        assert error.type == "TooFewWorkers"
        assert "start more workers for queue train" in error.message
        wait_until(
            lambda: all(info.state is JobState.CANCELED for info in training.nodes(id)), "its node jobs have ended"
        )
        wait_until(lambda: not training.family(), "its trainer has ended")


def test_forebay_worker_trains_in_a_worker_of_its_own(training: TrainingStack) -> None:
    training.supervisor("cpu,train")
    workers = WorkerRegistry(training.ledger)
    wait_until(lambda: len(workers.alive(30)) == 2, "two workers")
    assert {w.name.partition("@")[0]: w.queues for w in workers.alive(30)} == {"cpu": ("cpu",), "train": ("train",)}


def test_a_worker_that_only_trains_does_not_load_torch_itself(training: TrainingStack) -> None:
    worker = training.trainer().ready()
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in worker.children()]
    assert maps
    assert not any("libtorch" in text for text in maps)
