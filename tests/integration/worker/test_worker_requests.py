"""A real worker process and what users ask of it: stopping what runs, trying again later, keeping to its queues."""

from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress

import psutil
import pytest

from forebay import JobCanceled, as_completed
from forebay.contract.job import JobState
from forebay.contract.wire.celery_app import make_app
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import JobMessage, TaskArgs
from forebay.producer.handles.job import Job
from support.waiting import wait_until
from support.worker_stack import WorkerStack


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    """One worker, which serves the queue `cpu` only."""
    stack = open_stack()
    stack.worker().ready()
    return stack


def states(jobs: list[Job]) -> Counter[str]:
    return Counter(str(job.state) for job in jobs)


def test_a_running_job_is_canceled_once_its_work_has_stopped(stack: WorkerStack) -> None:
    model = stack.model("Slow", max_batch_size=2)
    whole = stack.client.predict(model, [{"n": n} for n in range(200)], batched=True)
    wait_until(lambda: stack.runs(), "its first batch is done")
    assert whole.cancel() is JobState.RUNNING
    assert whole.info().cancel_requested_at is not None
    with pytest.raises(JobCanceled):
        whole.result(120)
    ran = len(stack.runs())
    assert 0 < ran < 200
    assert stack.client.predict(model, {"n": 1000}).result(120) == 1000  # the worker goes on
    assert len(stack.runs()) == ran + 1


def test_of_jobs_in_one_pool_task_only_those_asked_for_are_canceled(stack: WorkerStack) -> None:
    model = stack.model("Slow", "several", max_batch_size=2)
    jobs = stack.client.predict_many(model, [{"n": n} for n in range(2000, 2020)])
    wait_until(lambda: 2000 in stack.runs(), "the first batch is done")
    asked = {job.cancel() for job in jobs[14:]}
    assert asked == {JobState.RUNNING}
    assert len(list(as_completed(jobs, 120))) == 20
    assert states(jobs[:14]) == {"succeeded": 14}
    assert states(jobs[14:]) == {"canceled": 6}
    assert jobs[14].retry().result(120) == 2014
    assert jobs[14].info().cancel_requested_at is None


def test_a_job_whose_child_died_is_canceled_when_that_was_asked_for(stack: WorkerStack) -> None:
    model = stack.model("Recorder", "held")
    stack.hold()
    job = stack.client.predict(model, {"n": 3000})
    wait_until(lambda: job.state is JobState.RUNNING, "it runs")
    assert job.cancel() is JobState.RUNNING
    for pid in stack.workers[0].children():
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    stack.go_on()
    with pytest.raises(JobCanceled):
        job.result(120)
    assert job.info().attempt == 1


def test_a_transient_error_is_waited_out(stack: WorkerStack) -> None:
    model = stack.model("Flaky")
    away = stack.folder / "away"
    assert stack.client.predict(model, 0).result(120) == 0  # it is loaded
    away.touch()
    jobs = stack.client.predict_many(model, range(1, 6), max_attempts=20)
    wait_until(lambda: all(job.info().attempt for job in jobs), "each was tried")
    waits = [info for job in jobs if (info := job.info()).not_before is not None]
    assert all("feature store answers 503" in info.progress.message for info in waits)
    away.unlink()
    assert [job.result(120) for job in jobs] == list(range(1, 6))
    assert max(job.info().attempt for job in jobs) > 1


def test_a_model_that_cannot_be_loaded_for_now_fails_no_job(stack: WorkerStack) -> None:
    away = stack.folder / "away-load"
    away.touch()
    job = stack.client.predict(stack.model("Flaky", "flaky-load"), 7, max_attempts=1)
    wait_until(lambda: "model_away" in stack.workers[0].said(), "a load was tried")
    assert job.state is not JobState.FAILED
    away.unlink()
    assert job.result(120) == 7
    assert job.info().attempt == 1


def test_all_failed_jobs_of_a_model_run_again_as_one_operation(stack: WorkerStack) -> None:
    model = stack.model("Flaky", "flaky-twice")
    assert stack.client.predict(model, 0).result(120) == 0
    away = stack.folder / "away"
    away.touch()
    jobs = stack.client.predict_many(model, range(8), max_attempts=1)
    assert len(list(as_completed(jobs, 120))) == 8
    assert states(jobs) == {"failed": 8}
    assert stack.client.retry_failed("flaky-twice", dry_run=True) == 8
    assert stack.client.retry_failed("echo") == 0
    away.unlink()
    assert stack.client.retry_failed("flaky-twice/1") == 8
    assert [job.result(120) for job in jobs] == list(range(8))  # the handles wait afresh too


def test_a_message_in_the_wrong_queue_runs_nothing(stack: WorkerStack) -> None:
    model = stack.model("Echo", "elsewhere", resources={"gpu": 1})
    job = stack.client.predict(model, 1)
    app = make_app(stack.settings)
    with closing(Dispatcher(app)) as dispatcher:
        dispatcher.send([JobMessage("cpu", 5, TaskArgs("elsewhere", 1, [job.id], exclusive=False))])
    after = stack.client.predict(stack.model("Echo", "here"), 2)
    assert after.result(120) == 2
    wait_until(lambda: not stack.inspect().active().get("w1@test"), "the message was handled")
    assert (job.state, job.info().attempt) == (JobState.QUEUED, 0)
    assert job.cancel() is JobState.CANCELED
