"""How work ends when it does not end well: poison, limits of time and memory, and workers that are told to stop."""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable

import psutil
import pytest

from forebay import JobFailed, as_completed
from forebay.contract.job import JobState
from forebay.producer.handles.job import Job
from support.waiting import wait_until
from support.worker_stack import WorkerStack

GIB = 2**30


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    """One worker, whose children are killed again and again."""
    stack = open_stack(CHILD_MEMORY_BYTES="4GiB")
    stack.worker(LOAD_TIMEOUT_S="2s").ready()
    return stack


def ended(jobs: list[Job], timeout: float = 120) -> Counter[str]:
    return Counter(str(job.state) for job in as_completed(jobs, timeout))


def error_of(job: Job) -> str:
    with pytest.raises(JobFailed) as caught:
        job.result(120)
    assert caught.value.type == "WorkerLost"
    return caught.value.reason


def test_a_poisonous_job_among_200_fails_alone_and_says_why(stack: WorkerStack) -> None:
    model = stack.model("Moody", "poison")
    rows = [{"n": n, "kill": n == 77} for n in range(200)]
    jobs = stack.client.predict_many(model, rows, max_attempts=2)
    assert ended(jobs) == {"succeeded": 199, "failed": 1}
    reason = error_of(jobs[77])
    assert re.match(r"attempt 2 of 2: signal 9 \(SIGKILL\), child \d+ of w1@test; its last lines:\n", reason)
    assert reason.endswith("a poisonous row")
    assert len(reason) <= 4200
    assert stack.runs().count(77) == 2


def test_a_worker_whose_child_dies_while_it_starts_ends_with_an_error(own: WorkerStack) -> None:
    worker = own.worker()
    (child,) = wait_until(worker.children, "it has a child")
    os.kill(child, signal.SIGKILL)
    assert worker.process.wait(120) == 1
    assert "Could not start worker processes" in worker.said()


def test_a_job_whose_worker_died_says_so_while_it_waits_for_its_next_attempt(own: WorkerStack) -> None:
    worker = own.worker().ready()
    own.hold()
    job = own.client.predict(own.model("Recorder"), {"n": 1})
    wait_until(lambda: job.state == JobState.RUNNING, "it runs")
    (child,) = worker.children()
    os.kill(child, signal.SIGKILL)
    told = wait_until(lambda: job.info().progress.message, "the crash is told")
    assert told.startswith(f"attempt 1 of 3: signal 9 (SIGKILL), child {child} of w1@test")
    own.go_on()
    assert job.result(120) == 1


def test_a_segfault_leaves_its_stack_and_no_password(stack: WorkerStack) -> None:
    job = stack.client.predict(stack.model("Moody", "segfault"), {"n": 300, "crash": True}, max_attempts=1)
    reason = error_of(job)
    assert "signal 11 (SIGSEGV)" in reason
    assert "Fatal Python error: Segmentation fault" in reason
    assert "support/models.py" in reason
    assert "redis://user:***@there/0" in reason
    assert "hunter2" not in reason


def test_a_job_that_wants_20_gib_under_a_memory_limit_fails_alone(stack: WorkerStack) -> None:
    model = stack.model("Moody", "greedy", max_batch_size=64)
    rows = [{"n": 1000 + n, "bytes": 20 * GIB if n == 50 else 0} for n in range(200)]
    jobs = stack.client.predict_many(model, rows)
    assert ended(jobs) == {"succeeded": 199, "failed": 1}
    with pytest.raises(JobFailed) as caught:
        jobs[50].result(0)
    assert caught.value.type == "MemoryError"
    assert {job.info().attempt for job in jobs} == {1}


def test_a_forward_pass_that_hangs_is_killed_and_its_neighbours_run_alone(stack: WorkerStack) -> None:
    model = stack.model("Moody", "hanging", timeout_s=1.0)
    rows = [{"n": 2000 + n, "hang": n == 3} for n in range(8)]
    jobs = stack.client.predict_many(model, rows, max_attempts=2)
    assert ended(jobs) == {"succeeded": 7, "failed": 1}
    reason = error_of(jobs[3])
    assert reason.startswith("attempt 2 of 2: timeout_s of 1 s exceeded: killed by its worker (SIGKILL), child ")
    assert {job.info().attempt for job in jobs} == {2}
    assert Counter(n for n in stack.runs() if 2000 <= n < 2008)[2003] == 2
    assert stack.client.predict(model, {"n": 2010}).result(120) == 2010


def test_steps_within_the_limit_may_take_longer_together(stack: WorkerStack) -> None:
    model = stack.model("Moody", "steady", timeout_s=1.5, max_batch_size=1)
    jobs = stack.client.predict_many(model, [{"n": 2100 + n, "sleep": 0.4} for n in range(5)])
    assert ended(jobs) == {"succeeded": 5}
    assert {job.info().attempt for job in jobs} == {1}


def test_a_version_that_never_loads_is_given_up(stack: WorkerStack) -> None:
    job = stack.client.predict(stack.model("Stuck"), 1, max_attempts=1)
    assert "load_timeout_s of 2 s exceeded" in error_of(job)
    assert stack.client.predict(stack.model("Doubler"), 21).result(120) == 42


def stop_under_load(stack: WorkerStack, name: str, first: int) -> None:
    """One worker is told to stop with a batch on its device and jobs claimed, handed over, buffered and in Redis."""
    model = stack.model("Moody", "load", max_batch_size=4)
    worker = stack.worker(name).ready()
    lead = stack.client.predict(model, {"n": first + 900, "sleep": 0.5})
    wait_until(lambda: first + 900 in stack.runs(), "the child is busy, so that what comes gathers")
    rows = [{"n": first + n, "sleep": 0.02} for n in range(360)]
    jobs = [*stack.client.predict_many(model, rows[:300]), *(stack.client.predict(model, row) for row in rows[300:])]
    wait_until(lambda: first in stack.runs(), "a batch runs")
    worker.process.send_signal(signal.SIGTERM)
    second = stack.worker(f"{name}-second")
    assert worker.process.wait(120) == 0
    done = sum(job.state == JobState.SUCCEEDED for job in jobs)
    assert done < 150, "it did not stop"
    assert stack.states().get("running", 0) == 0 or stack.runs_by_worker(range(first, first + 360))[second.process.pid]
    assert ended([lead, *jobs]) == {"succeeded": 361}
    assert {job.info().attempt for job in jobs} == {1}
    runs = Counter(n for n in stack.runs() if first <= n < first + 360)
    assert runs == dict.fromkeys(range(first, first + 360), 1)
    assert "event=jobs_released" in worker.said()
    assert "lease_lost" not in worker.said()
    assert second.terminate() == 0


def test_a_worker_told_to_stop_wastes_no_attempt(own: WorkerStack) -> None:
    stop_under_load(own, "w", 0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_worker_told_to_stop_20_times_wastes_no_attempt(own: WorkerStack) -> None:
    for i in range(20):
        stop_under_load(own, f"w{i}", 1000 * i)


def test_what_waits_goes_to_another_worker_while_the_first_is_still_at_its_last_batch(own: WorkerStack) -> None:
    first = own.worker("first").ready()
    model = own.model("Moody", max_batch_size=4)
    own.hold()
    jobs = own.client.predict_many(model, [{"n": n, "hold": n < 4} for n in range(600)])
    wait_until(lambda: own.states().get("running"), "a batch is on the device")
    jobs += [own.client.predict(model, {"n": 600 + n}) for n in range(10)]
    claimed = {info.id for info in own.client.jobs(state="running", limit=1000)}
    first.process.send_signal(signal.SIGTERM)
    own.worker("second")
    waiting = [job for job in jobs if job.id not in claimed]
    assert ended(waiting) == {"succeeded": len(waiting)}
    assert len(waiting) > 300
    assert first.alive
    assert jobs[0].state == JobState.RUNNING
    own.go_on()
    assert ended(jobs) == {"succeeded": 610}
    assert first.process.wait(120) == 0
    assert Counter(own.runs()) == dict.fromkeys(range(610), 1)
    assert {job.info().attempt for job in jobs} == {1}


def test_a_batch_that_outlasts_the_grace_is_given_to_others_uncounted(own: WorkerStack) -> None:
    first = own.worker("first", SHUTDOWN_GRACE_S="1s").ready()
    job = own.client.predict(own.model("Moody"), {"n": 1, "sleep": 3}, max_attempts=1)
    wait_until(lambda: own.runs(), "it runs")
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(120) == 0
    assert "shutdown_grace_s" in first.said()
    own.worker("second")
    assert job.result(120) == 1
    assert job.info().attempt == 1


def test_a_worker_ends_in_good_order_when_its_supervisor_was_killed(own: WorkerStack) -> None:
    supervisor = psutil.Process(own.supervisor().pid)
    worker = wait_until(lambda: own.worker_of(supervisor), "a worker has started")
    job = own.client.predict(own.model("Moody"), {"n": 1, "sleep": 1})
    wait_until(lambda: own.runs(), "it runs")
    supervisor.kill()
    supervisor.wait(120)
    wait_until(lambda: not psutil.pid_exists(worker.pid) or worker.status() == psutil.STATUS_ZOMBIE, "it has ended")
    assert job.result(120) == 1
    assert job.info().attempt == 1


def test_a_worker_frozen_for_three_leases_drops_what_it_has_lost(own: WorkerStack) -> None:
    first = own.worker("first", LEASE_S="1s", HEARTBEAT_S="0.3").ready()
    model = own.model("Moody", max_batch_size=2)
    jobs = own.client.predict_many(model, [{"n": n, "sleep": 0.2} for n in range(16)])
    wait_until(lambda: own.runs(), "a batch runs")
    first.freeze()
    frozen_at = time.monotonic()
    second = own.worker("second")
    assert ended(jobs) == {"succeeded": 16}
    wait_until(lambda: time.monotonic() > frozen_at + 3, "three leases have passed")
    before = [(info.id, info.finished_at, info.attempt, info.worker) for info in own.client.jobs(limit=100)]
    first.thaw()
    wait_until(lambda: "dropped=unrun" in first.said(), "it has noticed")
    assert own.client.predict(model, {"n": 100}).result(120) == 100
    assert [(i.id, i.finished_at, i.attempt, i.worker) for i in own.client.jobs(limit=100)][1:] == before
    assert second.terminate() == 0
    again = own.client.predict(model, {"n": 101})  # and it works on
    assert again.result(120) == 101
    assert again.info().worker == "first@test"
    runs = own.runs_by_worker(range(16))
    assert runs[first.process.pid] < 12, "it computed on what others had"


@pytest.mark.slow
def test_a_5_minute_job_is_run_once_though_its_lease_is_5_s(own: WorkerStack) -> None:
    for name in ("first", "second"):
        own.worker(name, LEASE_S="5s", HEARTBEAT_S="1").ready()
    job = own.client.predict(own.model("Moody"), {"n": 1, "sleep": 300})
    assert job.result(400) == 1
    assert own.runs() == [1]
    assert job.info().attempt == 1
