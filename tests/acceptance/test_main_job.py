"""The main job through the Python client, as a user calls it, on a stack that a user started."""

import asyncio
import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

import forebay
from forebay import (
    Client,
    ForebayError,
    InvalidInput,
    Job,
    JobCanceled,
    JobExpired,
    JobFailed,
    JobNotFound,
    JobState,
    ModelNotFound,
    NoQueueFits,
    PayloadTooLarge,
    ResultTimeout,
    as_completed,
)
from support.digits import images
from support.user import User
from support.waiting import wait_until

PATIENCE_S = 60


@pytest.fixture(scope="module")
def rows():
    return images(2000)


@pytest.fixture(scope="module")
def doubler(client: Client) -> str:
    return client.models.register("doubler", runtime="python", options={"class": "support.models:Doubler"}).ref


@pytest.fixture(scope="module")
def echo(client: Client) -> str:
    return client.models.register("echo", runtime="python", options={"class": "support.models:Echo"}).ref


@pytest.fixture
def waiting(client: Client, rows):
    """Submits a job to a queue that nobody serves; what still waits in the end is canceled."""
    jobs: list[Job] = []

    def submit(**terms) -> Job:
        jobs.append(client.predict("digits", rows[0], queue="gpu", **terms))
        return jobs[-1]

    yield submit
    for job in jobs:
        job.cancel()


def test_two_thousand_jobs_have_the_results_of_a_direct_forward_pass(client, rows, direct):
    jobs = client.predict_many("digits", rows, metadata={"run": "2000"})
    results = np.stack([job.result(PATIENCE_S) for job in jobs])
    assert len({job.id for job in jobs}) == 2000
    np.testing.assert_allclose(results, direct(rows), rtol=1e-5, atol=1e-5)
    infos = client.jobs(metadata={"run": "2000"}, limit=10_000)
    assert {info.state for info in infos} == {JobState.SUCCEEDED}
    assert [info.id for info in infos] == [job.id for job in reversed(jobs)], "newest first, in the order of submission"
    assert {info.attempt for info in infos} == {1}


def test_one_job_tells_everything_about_itself(client, rows, direct):
    job = client.predict("digits/1", rows[0], priority=2, metadata={"who": "me"}, max_attempts=5)
    np.testing.assert_allclose(job.result(PATIENCE_S), direct(rows[:1])[0], atol=1e-5)
    info = job.info()
    assert (job.done(), job.state, job.exception()) == (True, JobState.SUCCEEDED, None)
    assert (info.id, info.kind, info.model, info.version, info.queue) == (job.id, "predict", "digits", 1, "cpu")
    assert (info.priority, info.attempt, info.max_attempts, info.metadata) == (2, 1, 5, {"who": "me"})
    assert info.finished_at is not None
    assert info.started_at is not None
    assert info.created_at <= info.started_at <= info.finished_at <= datetime.now(UTC)
    assert (info.progress.done, info.progress.total, info.error, info.deadline_at) == (1, 1, None, None)
    assert info.worker is not None
    assert info.worker.startswith("cpu")


def test_a_batch_is_one_job_with_one_result(client, rows, direct):
    job = client.predict("digits", rows[:10], batched=True)
    np.testing.assert_allclose(job.result(PATIENCE_S), direct(rows[:10]), atol=1e-5)
    assert job.info().progress.total == 10


def test_a_payload_beyond_what_a_row_holds_comes_back_whole(client, echo):
    large = np.random.default_rng(0).random(2**17)  # 1 MiB: through the blob store and back
    np.testing.assert_array_equal(client.predict(echo, large).result(PATIENCE_S), large)


@pytest.mark.parametrize("value", ["text", b"bytes", 7, 2.5, True, None, ["a", 1], {"a": [1, {"b": b"c"}]}, "", []])
def test_a_model_without_a_signature_takes_whatever_can_be_carried(client, echo, value):
    assert client.predict(echo, value).result(PATIENCE_S) == value


def test_as_completed_gives_every_job_once_as_it_ends(client, rows):
    jobs = client.predict_many("digits", rows[:300])
    assert {job.id for job in as_completed(jobs, PATIENCE_S)} == {job.id for job in jobs}
    assert all(job.done() for job in jobs)


def test_as_completed_and_wait_say_which_have_not_ended(client, rows, waiting):
    late, quick = waiting(), client.predict("digits", rows[0])
    assert forebay.wait([late, quick], PATIENCE_S, return_when="any") == ({quick}, {late})
    assert forebay.wait([late, quick], 0.05) == ({quick}, {late})
    with pytest.raises(ResultTimeout, match="1 of 2 jobs have not ended"):
        list(as_completed([late, quick], 0.05))
    late.cancel()
    assert forebay.wait([late, quick], PATIENCE_S, return_when="all") == ({late, quick}, set())


def test_jobs_can_be_awaited_together(client, rows, direct):
    async def gather():
        return await asyncio.gather(*client.predict_many("digits", rows[:50]))

    np.testing.assert_allclose(np.stack(asyncio.run(gather())), direct(rows[:50]), atol=1e-5)


def test_giving_up_awaiting_a_job_leaves_it_and_its_handle_alone(waiting):
    job = waiting()

    async def give_up():
        await asyncio.wait_for(job, 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    with pytest.raises(ResultTimeout):
        job.result(0.05)
    job.cancel()
    assert isinstance(job.exception(PATIENCE_S), JobCanceled)


def test_a_result_that_nobody_works_on_says_so(waiting):
    job = waiting()
    with pytest.raises(ResultTimeout, match=r"no worker serves queue 'gpu' now: start one with `forebay worker`"):
        job.result(0.05)
    assert (job.state, job.done(), job.wait(0.05)) == (JobState.QUEUED, False, False)


def test_a_result_is_there_as_soon_as_the_ledger_says_so(client, rows):
    jobs = client.predict_many("digits", rows[:40])
    for job in jobs:
        wait_until(job.done, "the job has ended")
        assert job.result(timeout=0).shape == (10,)


def test_a_timeout_without_end_is_one(client, rows):
    assert client.predict("digits", rows[0]).result(float("inf")).shape == (10,)


def test_a_waiting_job_can_be_canceled_and_an_ended_one_not(client, rows, waiting):
    job, ended = waiting(), client.predict("digits", rows[0])
    assert job.cancel() is JobState.CANCELED
    with pytest.raises(JobCanceled, match=job.id):
        job.result(PATIENCE_S)
    ended.result(PATIENCE_S)
    assert ended.cancel() is JobState.SUCCEEDED


def test_a_job_past_its_deadline_expires_and_can_be_retried(client, rows, direct):
    job = client.predict("digits", rows[0], deadline=1e-6)
    with pytest.raises(JobExpired, match="before its deadline"):
        job.result(PATIENCE_S)
    assert job.state is JobState.EXPIRED
    assert job.retry() is job
    np.testing.assert_allclose(job.result(PATIENCE_S), direct(rows[:1])[0], atol=1e-5)
    with pytest.raises(ForebayError, match="cannot retry a job that is succeeded"):
        job.retry()


@pytest.mark.parametrize("deadline", [60, 60.0, timedelta(minutes=1), datetime.now(UTC) + timedelta(hours=1)])
def test_a_deadline_is_seconds_or_a_timedelta_or_an_aware_datetime(client, rows, deadline):
    job = client.predict("digits", rows[0], deadline=deadline)
    job.result(PATIENCE_S)
    ends = job.info().deadline_at
    assert ends is not None
    assert timedelta(seconds=50) < ends - datetime.now(UTC) <= timedelta(hours=1)


def test_a_failed_job_says_what_its_model_raised_and_its_neighbours_succeed(client, doubler):
    jobs = client.predict_many(doubler, [1, -1, 3])
    assert [jobs[0].result(PATIENCE_S), jobs[2].result(PATIENCE_S)] == [2, 6]
    with pytest.raises(JobFailed, match="cannot double -1") as failed:
        jobs[1].result(PATIENCE_S)
    assert (failed.value.type, failed.value.reason) == ("ValueError", "cannot double -1")
    assert isinstance(jobs[1].exception(), JobFailed)
    error = jobs[1].info().error
    assert error is not None
    assert (error.type, error.message) == ("ValueError", "cannot double -1")


def test_the_same_key_and_request_give_the_same_job(client, rows):
    first, again = (client.predict("digits", rows[0], idempotency_key="once") for _ in range(2))
    assert again is first
    assert [job.result(PATIENCE_S).shape for job in (first, again)] == [(10,), (10,)]
    with pytest.raises(InvalidInput, match="'once' belongs to job"):
        client.predict("digits", rows[1], idempotency_key="once")
    many = client.predict_many("digits", rows[:3], idempotency_key="thrice")
    assert client.predict_many("digits", rows[:3], idempotency_key="thrice") == many
    assert len({job.id for job in many}) == 3


def test_a_key_met_again_by_another_client_gives_the_result_there(client, user: User, rows):
    first = client.predict("digits", rows[0], idempotency_key="shared")
    first.result(PATIENCE_S)
    with user.client() as other:
        again = other.predict("digits", rows[0], idempotency_key="shared")
        assert again.id == first.id
        np.testing.assert_array_equal(again.result(PATIENCE_S), first.result())


@pytest.mark.parametrize("priority", range(10))
def test_every_priority_is_taken(client, rows, priority):
    job = client.predict("digits", rows[0], priority=priority)
    job.result(PATIENCE_S)
    assert job.info().priority == priority


def test_jobs_are_found_by_metadata_state_kind_and_model(client, rows, waiting):
    client.predict("digits", rows[0], metadata={"team": "blue", "n": 1}).result(PATIENCE_S)
    late = waiting(metadata={"team": "blue", "n": 2})

    def found(**filters):
        return [info.metadata["n"] for info in client.jobs(metadata={"team": "blue"}, **filters)]

    assert found() == [2, 1]
    assert found(state="succeeded") == [1]
    assert found(state=["succeeded", "queued"], kind="predict", model="digits/1") == [2, 1]
    assert found(model="doubler") == found(kind="train") == []
    assert client.jobs(metadata={"team": "blue", "n": 2})[0].id == late.id
    assert client.jobs(metadata={"team": "red"}) == []


def test_pages_of_jobs_are_disjoint_and_complete(client, rows):
    jobs = client.predict_many("digits", rows[:25], metadata={"paged": True})
    pages, before = [], None
    while page := client.jobs(metadata={"paged": True}, limit=10, before=before):
        pages.append([info.id for info in page])
        before = pages[-1][-1]
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [id for page in pages for id in page] == [job.id for job in reversed(jobs)]


def test_queues_tell_what_waits_and_who_serves_them(client, waiting):
    before = {queue.name: queue for queue in client.queues()}["gpu"].depth
    waiting(), waiting()
    queues = {queue.name: queue for queue in client.queues()}
    assert list(queues) == ["cpu", "gpu", "remote", "train", "train-gpu"]
    assert len(queues["cpu"].workers) == 1
    assert (queues["gpu"].workers, queues["gpu"].depth - before, queues["gpu"].running) == ((), 2, 0)
    assert queues["gpu"].oldest_age_s is not None
    assert queues["gpu"].capacity["gpu"] == 1


def test_two_clients_see_each_others_jobs(client, user: User, rows, waiting):
    done = client.predict("digits", rows[0], metadata={"two": 2})
    done.result(PATIENCE_S)
    with user.client() as other:
        assert [info.id for info in other.jobs(metadata={"two": 2})] == [done.id]
        np.testing.assert_array_equal(other.job(done.id).result(0), done.result())
        late = waiting()
        assert other.job(late.id).cancel() is JobState.CANCELED
    assert isinstance(late.exception(PATIENCE_S), JobCanceled)


def test_another_process_reads_a_result_by_its_id(client, user: User, rows):
    job = client.predict("digits", rows[7])
    program = (
        "import sys, json, forebay\n"
        "with forebay.Client() as client:\n"
        "    print(json.dumps(client.job(sys.argv[1]).result(120).tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, job.id],
        cwd=user.folder, env=user.environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    np.testing.assert_allclose(json.loads(done.stdout), job.result(PATIENCE_S))


def test_many_threads_share_one_client(client, rows, direct):
    results: dict[int, np.ndarray] = {}

    def work(start: int) -> None:
        for i in range(start, start + 10):
            results[i] = client.predict("digits", rows[i]).result(PATIENCE_S)

    threads = [threading.Thread(target=work, args=(10 * n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(np.stack([results[i] for i in range(160)]), direct(rows[:160]), atol=1e-5)


def test_a_handle_of_a_closed_client_says_so_instead_of_waiting(user: User, rows):
    with user.client() as other:
        job = other.predict("digits", rows[0], queue="gpu")
        job.cancel()
        late = other.predict("digits", rows[0], queue="gpu")
        late.cancel()
        assert isinstance(job.exception(PATIENCE_S), JobCanceled)
    assert isinstance(job.exception(), JobCanceled), "what was read before is still known"
    with pytest.raises(ForebayError, match="this client is closed"):
        late.result()


@pytest.mark.parametrize("id", ["0" * 32, "f" * 32])
def test_a_job_that_was_never_submitted_is_not_found(client, id):
    with pytest.raises(JobNotFound, match=id):
        client.job(id)


@pytest.mark.parametrize("id", ["", "nonsense", "../../etc/passwd", None, 7, "0" * 33])
def test_what_is_no_job_id_is_refused(client, id):
    with pytest.raises(InvalidInput, match="is not a valid job id"):
        client.job(id)


def test_what_cannot_be_submitted_is_refused_with_what_to_do(client, rows):
    with pytest.raises(ModelNotFound, match="no model is called 'nobody'"):
        client.predict("nobody", rows[0])
    with pytest.raises(ModelNotFound, match="no version 99"):
        client.predict("digits/99", rows[0])
    with pytest.raises(InvalidInput, match=r"inputs\[1\].*expected float32 of shape \[64\]"):
        client.predict_many("digits", [rows[0], rows[1][:63]])
    with pytest.raises(PayloadTooLarge, match="the limit is 64 MiB"):
        client.predict("echo", np.zeros(65 * 2**20, np.uint8))
    client.models.register("giant", runtime="python", options={"class": "a:B"}, resources={"gpu": 8})
    with pytest.raises(NoQueueFits, match="needs 8 gpu"):
        client.predict("giant", 1)


def test_models_are_registered_found_aliased_and_deleted(client, digits_pt2, rows):
    first = client.models.register("shapes", digits_pt2, metadata={"owner": "vision"}, resources={"memory": "1GiB"})
    second = client.models.register("shapes", str(digits_pt2), metadata={"owner": "vision"})
    assert [(m.ref, m.runtime) for m in (first, second)] == [("shapes/1", "torch-export"), ("shapes/2", "torch-export")]
    assert first.signature.inputs_json() == {"input": {"dtype": "float32", "shape": [64]}}
    assert client.models.get("shapes").version == 2
    assert [m.ref for m in client.models.list("shapes")] == ["shapes/1", "shapes/2"]
    assert {"shapes/1", "shapes/2", "digits/1"} <= {m.ref for m in client.models.list()}

    assert client.models.set_alias("shapes", "champion", 1).aliases == ("champion",)
    assert client.models.get("shapes@champion").version == 1
    assert client.predict("shapes@champion", rows[0]).info().version == 1
    client.models.set_alias("shapes", "champion", 2)
    assert client.predict("shapes@champion", rows[0]).info().version == 2

    assert [m.ref for m in client.models.search(metadata={"owner": "vision"})] == ["shapes/1", "shapes/2"]
    fitting = client.models.search(metadata={"owner": "vision"}, resources={"memory": "512MiB"})
    assert [m.ref for m in fitting] == ["shapes/2"]
    takes = client.models.search(inputs={"input": {"dtype": "float32", "shape": [64]}})
    assert {"shapes/1", "shapes/2", "digits/1"} <= {m.ref for m in takes}
    assert client.models.search(inputs={"input": {"dtype": "float32", "shape": [65]}}) == []

    with pytest.raises(InvalidInput, match="move the alias first"):
        client.models.delete("shapes/2")
    client.models.drop_alias("shapes", "champion")
    with pytest.raises(ModelNotFound, match="no alias 'champion'"):
        client.predict("shapes@champion", rows[0])
    wait_until(lambda: not client.jobs(model="shapes", state=["queued", "running"]), "its jobs have ended")
    client.predict("shapes/2", rows[0]).result(PATIENCE_S)
    assert client.models.delete("shapes/2").ref == "shapes/2"
    with pytest.raises(ModelNotFound, match="no version 2; it has: 1"):
        client.predict("shapes/2", rows[0])
    assert client.models.register("shapes", digits_pt2).version == 3, "a version's number is never used again"
