"""A real worker process on a real Valkey and a real ledger: what it answers, and what is left when something is killed."""

import json
import os
import signal
from base64 import b64decode
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import redis
import torch
from sqlalchemy import text

from forebay import Client, InvalidInput, JobExpired, JobFailed, as_completed
from forebay.contract.job import JobState
from forebay.contract.wire.messages import announce_channel, redis_keys
from forebay.producer import sender
from forebay.producer.handles.job import Job
from forebay.storage.blobs.store import BlobStore
from support.servers import ValkeyServer
from support.waiting import wait_until
from support.worker_stack import WorkerStack


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    """One worker for all tests that do not harm it."""
    stack = open_stack(MAX_INLINE_BYTES="1000")
    stack.worker().ready()
    return stack


def ended(jobs: list[Job], timeout: float = 120) -> Counter[str]:
    """How the jobs ended."""
    return Counter(str(job.state) for job in as_completed(jobs, timeout))


def test_results_equal_a_direct_forward(stack: WorkerStack, tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(net, (torch.zeros(2, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "net.pt2")
    outputs = {"output": {"classes": ["a", "b", "c"]}}
    with pytest.raises(InvalidInput, match="the artifact has no output 'scores'; it has 'output'"):
        stack.client.models.register("net", tmp_path / "net.pt2", outputs={"scores": outputs["output"]})
    made = stack.client.models.register("net", tmp_path / "net.pt2", outputs=outputs, max_batch_size=16)
    assert (made.classes, made.signature.outputs[0].shape) == (("a", "b", "c"), (3,))
    model = made.ref
    rows = np.random.default_rng(0).standard_normal((50, 4), dtype=np.float32)
    jobs = stack.client.predict_many(model, rows)
    with torch.inference_mode():
        wanted = net(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose([job.result(120) for job in jobs], wanted, rtol=1e-5, atol=1e-6)


def test_an_example_is_kept_with_its_version_and_warms_it_up_or_says_that_it_cannot(stack: WorkerStack) -> None:
    good, bad = (stack.model("Doubler", f"example-{n}", example=n) for n in (4, -1))
    assert stack.client.models.example(good) == 4
    assert stack.client.models.example(stack.model("Doubler")) is None
    assert stack.client.predict(good, 3).result(120) == 6
    with pytest.raises(
        JobFailed, match="on the example it was registered with: ValueError: cannot double -1"
    ) as caught:
        stack.client.predict(bad, 3).result(120)
    assert caught.value.type == "ModelLoadFailed"


def test_a_bad_row_fails_alone_among_64(stack: WorkerStack) -> None:
    jobs = stack.client.predict_many(stack.model("Doubler"), [*range(40), -1, *range(40, 63)])
    assert ended(jobs) == {"succeeded": 63, "failed": 1}
    with pytest.raises(JobFailed, match="cannot double -1") as caught:
        jobs[40].result(0)
    assert caught.value.type == "ValueError"
    assert jobs[41].result(0) == 80
    assert {job.info().attempt for job in jobs} == {1}


def test_a_model_that_forgets_a_row_fails_its_jobs(stack: WorkerStack) -> None:
    jobs = stack.client.predict_many(stack.model("OneShort"), [1, 2, 3])
    for job in jobs:
        with pytest.raises(JobFailed, match="gave 0 rows for 1"):
            job.result(120)


def test_rows_of_unequal_shapes_are_batched_by_shape(stack: WorkerStack) -> None:
    rows = [{"x": np.ones(3 if i % 2 else 5, np.float32)} for i in range(16)]
    made = [job.result(120) for job in stack.client.predict_many(stack.model("Stacker"), rows)]
    assert [(row["sum"], row["batch"]) for row in made] == [(3 if i % 2 else 5, 8) for i in range(16)]


def test_a_batched_job_gives_one_stacked_result(stack: WorkerStack) -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    inputs = {"x": {"dtype": "float32", "shape": [3]}}
    made = stack.client.predict(stack.model("Stacker", inputs=inputs), x, batched=True).result(120)
    np.testing.assert_array_equal(made["sum"], x.sum(1))
    assert made["batch"].tolist() == [4] * 4


def test_several_named_inputs_and_outputs_keep_their_names(stack: WorkerStack) -> None:
    vector, word = {"dtype": "int64", "shape": [2]}, {"dtype": "str"}
    model = stack.model(
        "TwoWays", inputs={"left": vector, "right": vector, "word": word}, outputs={"total": vector, "text": word}
    )
    made = stack.client.predict(model, {"left": [1, 2], "right": [3, 4], "word": "abc"}).result(120)
    assert made["total"].tolist() == [4, 6]
    assert made["text"] == "ABC"


def test_payloads_above_the_inline_limit_go_through_blobs(stack: WorkerStack) -> None:
    x = np.ones(10_000, np.float32)
    job = stack.client.predict(stack.model("Echo"), x)
    np.testing.assert_array_equal(job.result(120), x)
    outcome = next(iter(stack.store.queries.outcomes([job.id])))
    assert outcome.result is None
    assert outcome.result_ref


def test_a_version_that_does_not_load_fails_its_jobs_with_the_reason(stack: WorkerStack) -> None:
    jobs = stack.client.predict_many(stack.model("Broken"), [1, 2])
    for job in jobs:
        with pytest.raises(JobFailed, match="no such weights") as caught:
            job.result(120)
        assert caught.value.type == "ModelLoadFailed"


def test_a_class_that_is_not_on_the_list_is_refused(stack: WorkerStack) -> None:
    model = stack.client.models.register("shell", runtime="python", options={"class": "os:system"}).ref
    with pytest.raises(JobFailed, match="not on the operator's list") as caught:
        stack.client.predict(model, "true").result(120)
    assert caught.value.type == "ModelRefused"


@pytest.mark.parametrize("damaged", [False, True])
def test_a_version_whose_artifact_is_gone_or_damaged_fails_its_jobs_with_the_reason_until_it_is_registered_again(
    stack: WorkerStack, tmp_path: Path, damaged: bool
) -> None:
    name = f"gone-{damaged}".lower()
    weights = tmp_path / "weights.bin"
    weights.write_bytes(f"weights {damaged}".encode())
    options = {"class": "support.models:Echo"}
    version = stack.client.models.register(name, weights, runtime="python", options=options)
    blobs = BlobStore(stack.settings.blobs)
    if damaged:
        Path(blobs.location(version.artifact)).write_bytes(b"weights FaLse")
    else:
        blobs.drop([version.artifact], lambda _: [])
    reason = f"the artifact of {version.ref} cannot be read: .*{version.artifact.removeprefix('sha256:')}.*; register it again"
    with pytest.raises(JobFailed, match=reason) as caught:
        stack.client.predict(version.ref, 1).result(120)
    assert caught.value.type == ("BlobCorrupt" if damaged else "BlobMissing")
    stack.client.models.register(name, weights, runtime="python", options=options)
    assert stack.client.predict(version.ref, 2).result(120) == 2


def test_a_version_that_is_no_longer_registered_fails_its_jobs_with_the_reason(stack: WorkerStack) -> None:
    model = stack.model("Echo", "deleted")
    assert stack.client.predict(stack.model("Recorder", "before"), {"n": 4000}).result(120) == 4000
    stack.hold()
    stack.client.predict("before/1", {"n": 4001})
    stack.wait_until_held()
    job = stack.client.predict(model, 1)
    with stack.ledger.write() as connection:  # client.models.delete refuses while a job waits
        connection.execute(text("DELETE FROM model_versions WHERE name = 'deleted'"))
    stack.go_on()
    with pytest.raises(JobFailed, match="deleted") as caught:
        job.result(120)
    assert caught.value.type == "ModelNotFound"


def test_a_ledger_that_fails_for_a_moment_costs_an_attempt_and_no_worker(stack: WorkerStack) -> None:
    """The child cannot write what it made; its leases lapse, and the jobs run again."""
    model = stack.model("Recorder", "moment")
    stack.hold()
    jobs = stack.client.predict_many(model, [{"n": 5000 + i} for i in range(5)])
    stack.wait_until_held()
    with stack.ledger.write() as connection:
        connection.execute(text("ALTER TABLE jobs RENAME TO elsewhere"))
    stack.go_on()
    try:
        wait_until(lambda: "pool_task_failed" in stack.workers[0].said(), "the child is refused")
    finally:
        with stack.ledger.write() as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO jobs"))
    assert ended(jobs) == {"succeeded": 5}
    assert {job.info().attempt for job in jobs} == {2}
    assert stack.client.predict(model, {"n": 5010}).result(120) == 5010
    assert stack.workers[0].alive
    assert "message_callback_failed" not in stack.workers[0].said()


def test_a_job_that_takes_longer_than_its_lease_keeps_it(stack: WorkerStack) -> None:
    stack.hold()
    job = stack.client.predict(stack.model("Recorder", "long"), {"n": 6000})
    stack.wait_until_held()
    first = lease(stack, job)
    wait_until(lambda: lease(stack, job) > first + 1.1 * stack.settings.lease_s, "its first lease has passed")
    stack.go_on()
    assert job.result(120) == 6000
    assert job.info().attempt == 1
    assert stack.runs().count(6000) == 1


def lease(stack: WorkerStack, job: Job) -> float:
    with stack.ledger.read() as connection:
        statement = text("SELECT lease_until FROM jobs WHERE id = :id")
        return float(connection.execute(statement, {"id": job.id}).scalar_one())


def test_urgent_jobs_overtake_those_that_wait(stack: WorkerStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "GATHER_S", 0.0)  # what is submitted within it shares a message
    model = stack.model("Recorder", "urgent")
    stack.hold()
    first = stack.client.predict(model, {"n": 1000})
    stack.wait_until_held()
    # One message each. The worker has taken at most 4 messages in advance; the rest waits in Redis by priority.
    late = [stack.client.predict(model, {"n": 1100 + i}, priority=9) for i in range(20)]
    soon = [stack.client.predict(model, {"n": 1200 + i}, priority=0) for i in range(5)]
    stack.go_on()
    assert ended([first, *late, *soon]) == {"succeeded": 26}
    order = [n for n in stack.runs() if 1000 <= n < 1300]
    assert order[0] == 1000
    assert max(order.index(1200 + i) for i in range(5)) <= 10
    assert [n for n in order if n >= 1200] == [1200 + i for i in range(5)]
    assert [n for n in order if 1100 <= n < 1200] == [1100 + i for i in range(20)]


def test_a_job_past_its_deadline_expires_and_never_runs(stack: WorkerStack) -> None:
    model = stack.model("Recorder", "late")
    stack.hold()
    first = stack.client.predict(model, {"n": 2000})
    stack.wait_until_held()
    late = stack.client.predict(model, {"n": 2001}, deadline=0.1)
    with pytest.raises(JobExpired):
        late.result(120)
    stack.go_on()
    assert first.result(120) == 2000
    assert stack.client.predict(model, {"n": 2002}).result(120) == 2002
    assert 2001 not in stack.runs()
    assert late.info().attempt == 0


def test_canceled_jobs_never_run(stack: WorkerStack) -> None:
    model = stack.model("Recorder", "canceled")
    stack.hold()
    first = stack.client.predict(model, {"n": 3000})
    stack.wait_until_held()
    waiting = stack.client.predict_many(model, [{"n": 3001 + i} for i in range(10)])
    assert {job.cancel() for job in waiting[:5]} == {JobState.CANCELED}
    stack.go_on()
    assert ended([first, *waiting]) == {"succeeded": 6, "canceled": 5}
    assert sorted(n for n in stack.runs() if 3000 <= n < 3100) == [3000, 3006, 3007, 3008, 3009, 3010]


def test_an_announcement_wakes_whoever_waits(stack: WorkerStack) -> None:
    channel = announce_channel(stack.client.session.id)
    with (
        redis.Redis.from_url(stack.settings.broker) as connection,
        connection.pubsub() as listener,
    ):
        listener.subscribe(channel)
        assert listener.get_message(timeout=60)["type"] == "subscribe"
        job = stack.client.predict(stack.model("Doubler"), 21)
        message = wait_until(lambda: listener.get_message(timeout=1), "the job is announced")
    assert message["data"].decode() == job.id
    assert job.result(120) == 42


def test_polling_alone_finds_the_result(stack: WorkerStack, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(stack.settings) as deaf:
        monkeypatch.setattr(deaf.session.watcher, "_channel", "forebay.done.nobody")
        assert deaf.predict(stack.model("Doubler"), 21).result(120) == 42


def test_a_worker_on_postgresql_answers_and_survives_its_child(
    tmp_path: Path, broker: str, postgres_database: str
) -> None:
    with closing(WorkerStack(tmp_path, broker, postgres_database)) as stack:
        stack.worker().ready()
        model = stack.model("Doubler")
        jobs = stack.client.predict_many(model, [*range(63), -1])
        assert ended(jobs) == {"succeeded": 63, "failed": 1}
        killer = stack.client.predict(stack.model("Recorder"), {"n": 1, "kill": True}, max_attempts=1)
        with pytest.raises(JobFailed) as caught:
            killer.result(120)
        assert caught.value.type == "WorkerLost"


def test_a_job_that_kills_its_child_takes_no_neighbour_with_it(own: WorkerStack) -> None:
    worker = own.worker().ready()
    jobs = own.client.predict_many(own.model("Recorder"), [{"n": n, "kill": n == 7} for n in range(21)], max_attempts=2)
    assert ended(jobs) == {"succeeded": 20, "failed": 1}
    with pytest.raises(JobFailed) as caught:
        jobs[7].result(0)
    assert caught.value.type == "WorkerLost"
    assert jobs[7].info().attempt == 2
    # It killed the batch it came in, then only itself; nobody else lost more than that one attempt.
    assert {job.info().attempt for job in jobs if job is not jobs[7]} == {2}
    assert own.runs().count(7) == 2
    assert worker.alive


def test_a_child_killed_in_a_batch_loses_no_job(own: WorkerStack) -> None:
    worker = own.worker().ready()
    own.hold()
    jobs = own.client.predict_many(own.model("Recorder"), [{"n": n} for n in range(300)])
    wait_until(lambda: own.states().get("running"), "a batch runs")
    (child,) = worker.children()
    os.kill(child, signal.SIGKILL)
    own.go_on()
    assert ended(jobs) == {"succeeded": 300}
    assert [job.result(0) for job in jobs] == list(range(300))
    assert_each_once(own, jobs)
    assert {job.info().attempt for job in jobs} == {1, 2}


def test_a_worker_killed_with_500_jobs_waiting_loses_none(own: WorkerStack) -> None:
    first = own.worker("first").ready()
    own.hold()
    jobs = own.client.predict_many(own.model("Recorder"), [{"n": n} for n in range(500)])
    wait_until(lambda: own.states().get("running"), "a batch runs")
    first.kill()
    own.go_on()
    own.worker("second")
    assert ended(jobs) == {"succeeded": 500}
    assert [job.result(0) for job in jobs] == list(range(500))
    assert_each_once(own, jobs)


def assert_each_once(stack: WorkerStack, jobs: list[Job], first: int = 0) -> None:
    """No row was run more often than its job was attempted, and none was left out."""
    numbers = range(first, first + len(jobs))
    runs = Counter(n for n in stack.runs() if n in numbers)
    assert sorted(runs) == [*numbers]
    assert [n for n, job in zip(numbers, jobs, strict=True) if runs[n] > job.info().attempt] == []


def test_a_frozen_worker_that_comes_back_cannot_write_what_it_made(own: WorkerStack) -> None:
    first = own.worker("first").ready()
    own.hold()
    jobs = own.client.predict_many(own.model("Recorder"), [{"n": n} for n in range(30)])
    wait_until(lambda: own.states().get("running"), "a batch runs")
    first.freeze()
    own.go_on()
    second = own.worker("second")
    assert ended(jobs) == {"succeeded": 30}
    first.thaw()
    wait_until(lambda: "lease_lost" in first.said(), "the first worker's results are refused")
    assert {(job.info().attempt, job.info().worker) for job in jobs} == {(2, "second@test")}
    assert first.alive
    assert second.alive


def test_a_child_that_cannot_start_takes_no_job(own: WorkerStack) -> None:
    broken = own.worker("broken", PRELOAD="no_such_module")
    job = own.client.predict(own.model("Doubler"), 4)
    wait_until(lambda: "child_failed" in broken.said(), "its child has failed")
    wait_until(lambda: broken.said().count("child_failed") > 1, "another was tried")
    assert (job.state, job.info().attempt) == (JobState.QUEUED, 0)


def test_a_worker_told_to_stop_leaves_what_waits_untouched(own: WorkerStack) -> None:
    first = own.worker("first").ready()
    model = own.model("Recorder")
    own.hold()
    running = own.client.predict(model, {"n": 0})
    own.wait_until_held()
    waiting = [own.client.predict(model, {"n": n}) for n in range(1, 11)]
    first.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in first.said(), "the worker stops")
    own.go_on()
    assert first.process.wait(120) == 0
    assert running.result(120) == 0
    assert {(job.state, job.info().attempt) for job in waiting} == {(JobState.QUEUED, 0)}
    assert not own.known("first")
    own.worker("second")
    assert ended(waiting) == {"succeeded": 10}
    assert sorted(own.runs()) == list(range(11))
    assert {job.info().attempt for job in waiting} == {1}


def test_jobs_come_back_after_redis_was_flushed(stack: WorkerStack, server: ValkeyServer) -> None:
    model = stack.model("Recorder", "flushed")
    stack.hold()
    first = stack.client.predict(model, {"n": 7000})
    stack.wait_until_held()
    # A few of these are in the worker already, most are in Redis.
    jobs = [first, *(stack.client.predict(model, {"n": n}) for n in range(7001, 7050))]
    server.flush()
    stack.go_on()
    assert ended(jobs) == {"succeeded": 50}
    assert_each_once(stack, jobs, 7000)
    assert {job.info().attempt for job in jobs} == {1}


def test_a_worker_outlives_a_restart_of_redis(stack: WorkerStack, server: ValkeyServer) -> None:
    model = stack.model("Recorder", "restarted")
    stack.hold()
    running = stack.client.predict(model, {"n": 8000})
    stack.wait_until_held()
    waiting = [stack.client.predict(model, {"n": n}) for n in range(8001, 8011)]
    server.kill()
    during = stack.client.predict(model, {"n": 8011})  # durable all the same
    assert during.state == JobState.QUEUED
    stack.go_on()
    assert running.result(120) == 8000  # the ledger needs no Redis
    server.start()
    after = stack.client.predict(model, {"n": 8012})
    jobs = [running, *waiting, during, after]
    assert ended(jobs) == {"succeeded": 13}
    assert_each_once(stack, jobs, 8000)
    assert {job.info().attempt for job in jobs} == {1}
    assert stack.workers[0].alive
    assert "message_callback_failed" not in stack.workers[0].said()


def test_a_second_worker_gets_its_share(stack: WorkerStack) -> None:
    second = stack.worker("second").ready()
    stack.hold()
    model = stack.model("Recorder", "shared", max_batch_size=32)
    jobs = stack.client.predict_many(model, [{"n": n} for n in range(10_000, 11_024)])  # 32 messages
    wait_until(lambda: len({i.worker for i in stack.client.jobs(state="running", limit=1000)}) == 2, "both are busy")
    stack.go_on()
    assert ended(jobs) == {"succeeded": 1024}
    assert_each_once(stack, jobs, 10_000)
    shares = stack.runs_by_worker(range(10_000, 11_024))
    assert set(shares) == {worker.process.pid for worker in stack.workers}
    assert min(shares.values()) >= 128
    assert second.terminate() == 0


def test_nothing_is_left_in_redis_when_all_jobs_have_ended(stack: WorkerStack) -> None:
    assert ended(stack.client.predict_many(stack.model("Doubler"), range(600))) == {"succeeded": 600}
    with redis.Redis.from_url(stack.settings.broker) as connection:
        assert not connection.exists(*redis_keys("cpu"), "unacked", "unacked_index")


def test_tasks_are_told_to_who_listens_and_to_nobody_else(stack: WorkerStack) -> None:
    model = stack.model("Doubler")
    with (
        redis.Redis.from_url(stack.settings.broker) as connection,
        connection.pubsub(ignore_subscribe_messages=True) as listener,
    ):

        def published() -> int:
            return int(connection.info("commandstats").get("cmdstat_publish", {}).get("calls", 0))

        def told() -> bool:
            stack.client.predict(model, 1).result(60)
            message = listener.get_message(timeout=0.2)
            return message is not None and b"task-succeeded" in b64decode(json.loads(message["data"])["body"])

        stack.client.predict(model, 1).result(60)
        before = published()
        for n in range(60):
            stack.client.predict(model, n).result(60)
        assert published() - before < 120, "60 of them tell the client that its jobs have ended"
        listener.psubscribe("*celeryev/task*")
        wait_until(told, "an event comes")


def test_a_number_comes_back_as_a_number_and_a_version_is_as_good_as_its_reference(
    stack: WorkerStack, tmp_path: Path
) -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(1)

    exported = torch.export.export(
        Mean(), (torch.zeros(2, 4),), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    )
    torch.export.save(exported, tmp_path / "mean.pt2")
    version = stack.client.models.register("mean", tmp_path / "mean.pt2")
    result = stack.client.predict(version, np.arange(4.0)).result(120)  # float64, as NumPy makes them
    assert (type(result), result) == (np.float32, 1.5)
    many = stack.client.predict(version, np.ones((3, 4)), batched=True).result(120)
    assert (many.shape, many.dtype) == ((3,), np.float32)
    noted = stack.client.predict(version, [1, 2, 3, 4], metadata={"fold": np.int64(3), "share": np.float32(0.5)})
    assert noted.info().metadata == {"fold": 3, "share": 0.5}
    assert {job.model for job in stack.client.jobs(model=version)} == {"mean"}
    assert stack.client.models.get(version) == version
