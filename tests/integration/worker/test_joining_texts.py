"""A language model behind a real worker: jobs that are submitted while others generate join these."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from forebay.worker.runtimes import get_runtime
from support.language_models import save_llama, version
from support.waiting import wait_until
from support.worker_stack import Worker, WorkerStack

LONG = {"prompt": "Water", "n": 12, "max_tokens": 950, "temperature": 1, "seed": 5}
SHORT = {"prompt": "Water", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    stack = open_stack(PRELOAD="torch")
    stack.worker()
    folder = save_llama(stack.folder / "llama")
    for name in ("llama", "other"):
        stack.client.models.register(name, folder)
        stack.client.predict(name, SHORT).result(120)
    return stack


@pytest.fixture
def worker(stack: WorkerStack) -> Worker:
    return stack.workers[0]


@pytest.fixture
def long(stack: WorkerStack) -> Iterator[Any]:
    """A job that generates for many seconds."""
    job = stack.client.predict("llama", LONG)
    wait_until(lambda: str(job.state) == "running", "it runs")
    yield job
    job.cancel()
    assert job.wait(60)


@pytest.fixture(scope="module")
def direct(stack: WorkerStack) -> Callable[[Any], Any]:
    """What the runtime itself gives for one request."""
    model = get_runtime("text-generation").load(stack.folder / "llama", "cpu", version())
    return lambda request: model.predict([model.preprocess(request)])[0]


def test_a_short_text_is_answered_long_before_a_long_one_that_runs(
    stack: WorkerStack, long: Any, direct: Callable[[Any], Any]
) -> None:
    asked = [SHORT | {"prompt": [5, i]} for i in range(3, 6)]
    asked += [{"prompt": [5, 9], "max_tokens": 6, "temperature": 1, "seed": 4}]
    made = [job.result(60) for job in stack.client.predict_many("llama", asked)]
    assert str(long.state) == "running"
    assert made == [direct(request) for request in asked]


def test_a_job_that_joined_is_canceled_by_itself(stack: WorkerStack, long: Any) -> None:
    joined = stack.client.predict("llama", LONG | {"n": 2, "seed": 6})
    wait_until(lambda: str(joined.state) == "running", "it has joined")
    joined.cancel()
    assert joined.wait(30)
    assert (str(joined.state), str(long.state)) == ("canceled", "running")


def test_what_joined_a_child_that_is_killed_ends_once_and_right(
    stack: WorkerStack, worker: Worker, long: Any, direct: Callable[[Any], Any]
) -> None:
    asked = [LONG | {"n": 1, "seed": seed, "max_tokens": 80} for seed in range(3)]
    jobs = stack.client.predict_many("llama", asked)
    wait_until(lambda: str(jobs[-1].state) == "running", "they have joined, all at once")
    [child] = worker.children()
    os.kill(child, signal.SIGKILL)
    long.cancel()
    for job, request in zip(jobs, asked, strict=True):
        assert job.result(120) == direct(request)
        [past] = stack.store.queries.past_attempts(job.id)
        assert "signal 9" in (past.reason or "")  # the parent knew, and waited for no lease


def test_another_models_job_gets_its_turn_while_a_stream_goes_on(stack: WorkerStack) -> None:
    enough = threading.Event()

    def stream() -> None:
        i = 0
        while not enough.is_set():
            i += 1
            job = stack.client.predict("llama", SHORT | {"prompt": [5, i % 200 + 3], "max_tokens": 60})
            enough.wait(0.05)
        job.wait(60)

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        for _ in range(3):
            stack.client.predict("other", SHORT).result(30)
    finally:
        enough.set()
        thread.join(90)
