"""A user's program over the whole public interface. It is never run: `mypy tests/typing` holds every type against it."""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_type

import numpy as np

import forebay
from forebay import (
    AsyncClient,
    AsyncJob,
    BatchJob,
    BrokerUnavailable,
    Client,
    Evaluation,
    EvaluationJob,
    ForebayError,
    InvalidInput,
    Job,
    JobCanceled,
    JobEvent,
    JobExpired,
    JobFailed,
    JobInfo,
    JobNotFound,
    JobState,
    LedgerUnavailable,
    Manifest,
    ModelNotFound,
    ModelVersion,
    NoQueueFits,
    PayloadTooLarge,
    QueueFull,
    ResultTimeout,
    Settings,
    SubmitOptions,
    TrainingJob,
    Transient,
    as_completed,
    wait,
)


def opening() -> None:
    settings = Settings.load()
    assert_type(settings, Settings)
    assert_type(Settings.load({"FOREBAY_HOME": "/x"}, config=Path("forebay.toml"), home=Path("/x")), Settings)
    assert_type(settings.home, Path)
    assert_type(settings.broker, str)
    assert_type(settings.database, str)
    assert_type(settings.lease_s, float)
    assert_type(settings.as_environment(), dict[str, str])
    with Client() as client, Client(settings) as other, Client(None) as third:
        assert_type(client, Client)
        assert_type(other.settings, Settings)
        third.close()


def submitting(client: Client) -> None:
    assert_type(client.predict("digits", np.zeros(64, np.float32)), Job)
    assert_type(
        client.predict(
            "digits@champion",
            {"x": [1.0, 2.0], "text": "a", "blob": b"b"},
            priority=0,
            queue="gpu",
            deadline=dt.timedelta(minutes=5),
            max_attempts=1,
            idempotency_key="once",
            metadata={"run": 7, "nested": {"a": [1, None]}},
            batched=True,
        ),
        Job,
    )
    client.predict("digits", 1, deadline=60)
    client.predict("digits", 1, deadline=0.5)
    client.predict("digits", 1, deadline=dt.datetime.now(dt.UTC))
    assert_type(client.predict_many("digits/3", [np.zeros(64)], priority=9, idempotency_key="k"), list[Job])
    assert_type(client.predict_many("digits", (row for row in np.zeros((2, 64)))), list[Job])

    options: SubmitOptions = {"priority": 1, "metadata": {"owner": "vision"}}
    assert_type(client.predict("digits", 1, **options), Job)


def batches(client: Client) -> None:
    options: SubmitOptions = {"queue": "gpu", "deadline": 60}
    job = client.batch("minilm", ["a.parquet", Path("b.parquet")], Path("out"), columns="text", keep=["id"], **options)
    assert_type(job, BatchJob)
    assert_type((job.progress.completed, job.progress.share, job.progress.eta_s), tuple[int, float, float | None])
    assert_type(job.errors.complete, bool)
    assert_type(job.retry(), BatchJob)
    manifest = job.result(timeout=10)
    assert_type(manifest, Manifest)
    assert_type((manifest.output, manifest.counts.completed, manifest.counts.failed), tuple[str, int, int])
    assert_type(manifest.parts[0].name, str)
    assert_type(list(as_completed([job])), list[BatchJob])


def training(client: Client) -> None:
    job = client.train("digits", recipe="image-classifier", dataset="digits.parquet")
    assert_type(job, TrainingJob)
    assert_type(job.result(10), ModelVersion)
    client.train(
        "digits",
        recipe="classifier",
        dataset=[Path("a.csv"), "b.csv"],
        target="label",
        params={"epochs": 5, "hidden": [64, 32]},
        features=["x", "y"],
        missing="mean",
        split={"validation": 0.1, "test": 0.2, "key": "user"},
        seed=1,
        metric="f1",
        alias="champion",
        format="csv",
        nproc=2,
        nodes=2,
        resources={"gpu": 1},
        checkpoint_steps=100,
        checkpoint_minutes=None,
        checkpoint_keep=2,
        max_batch_size=64,
        priority=3,
        queue="train-gpu",
        deadline=dt.timedelta(hours=1),
        max_attempts=3,
        idempotency_key="tonight",
        metadata={"owner": "vision"},
    )
    assert_type(job.metrics(), list[dict[str, Any]])
    assert_type(job.metrics(after=10), list[dict[str, Any]])
    assert_type(job.run.version, int | None)
    assert_type(job.run.metrics, Mapping[str, float | None] | None)
    assert_type(job.checkpoints[0].step, int)
    evaluated = client.evaluate("digits@champion", Path("held-out"), target="label", columns={"x": "y"}, output="label")
    assert_type(evaluated, EvaluationJob)
    assert_type(evaluated.result(), Evaluation)
    found = client.models.evaluations("digits")
    assert_type(found, list[Evaluation])
    assert_type(found[0].metrics, Mapping[str, float | None])
    assert_type(found[0].confusion, Sequence[Sequence[int]] | None)
    assert_type((found[0].rows, found[0].failed, found[0].ms_per_row), tuple[int, int, float])


def wrong_types(client: Client) -> None:
    client.train("digits", dataset="digits.parquet")  # type: ignore[call-arg]
    client.train("digits", recipe="classifier", dataset=7)  # type: ignore[arg-type]
    client.evaluate("digits", "rows.csv")  # type: ignore[call-arg]
    assert_type(client.explain("digits", [1.0], method="saliency", target="7", steps=100, priority=3), Job)
    client.explain("digits", [1.0], step=100)  # type: ignore[call-arg]
    client.predict(7, 1)  # type: ignore[arg-type]
    client.predict("digits", 1, priority="high")  # type: ignore[arg-type]
    client.predict("digits", 1, deadline="soon")  # type: ignore[arg-type]
    client.predict("digits", 1, 5)  # type: ignore[arg-type, call-arg]
    client.predict_many("digits", 1)  # type: ignore[arg-type]
    client.jobs(limit="all")  # type: ignore[arg-type]
    wait([client.job("0" * 32)], return_when="some")  # type: ignore[arg-type]
    client.predict("digits", 1, prio=1)  # type: ignore[call-arg]
    client.batch("digits", "in", "out", batched=True)  # type: ignore[call-arg]
    repr(client.job("0" * 32).run)  # type: ignore[attr-defined]


def handles(client: Client, job: Job) -> None:
    assert_type(job.id, str)
    assert_type(job.info(), JobInfo)
    assert_type(job.history(), list[JobEvent])
    assert_type(job.state, JobState)
    assert_type(job.done(), bool)
    assert_type(job.wait(), bool)
    assert_type(job.wait(timeout=1.5, progress=True), bool)
    assert_type(job.result(), Any)
    assert_type(job.result(timeout=10), Any)
    assert_type(job.exception(), ForebayError | None)
    assert_type(job.exception(timeout=10), ForebayError | None)
    assert_type(job.cancel(), JobState)
    assert_type(job.retry(), Job)
    assert_type(client.job("0" * 32), Job)
    assert_type(client.retry_failed(), int)
    assert_type(client.retry_failed("digits@champion", dry_run=True), int)


async def awaiting(job: Job) -> None:
    assert_type(await job, Any)
    async with AsyncClient() as client:
        made = await client.predict("digits", 1, priority=2, batched=True)
        assert_type(made, AsyncJob)
        assert_type(await client.predict_many("digits", [1, 2], metadata={"a": 1}), list[AsyncJob])
        assert_type((await made, await made.result(1), await made.wait(1)), tuple[Any, Any, bool])
        assert_type((await made.info(), await made.cancel(), await made.state()), tuple[JobInfo, JobState, JobState])
        assert_type(await client.jobs(state="failed", limit=3), list[JobInfo])
        assert_type(await client.batch("digits", "in.parquet", "out", max_errors=3, priority=1), AsyncJob)
        assert_type(await client.models.get("digits@champion"), ModelVersion)
        assert_type(await client.models.register("digits", "digits.pt2", max_batch_size=8), ModelVersion)


def many(jobs: list[Job]) -> None:
    assert_type(as_completed(jobs), Iterator[Job])
    for job in as_completed(set(jobs), timeout=5):
        assert_type(job, Job)
    done, late = wait(jobs, timeout=5, return_when="any")
    assert_type(done, set[Job])
    assert_type(late, set[Job])
    assert_type(wait(jobs).not_done, set[Job])


def looking(client: Client) -> None:
    infos = client.jobs(
        state=["failed", JobState.EXPIRED],
        kind="predict",
        model="digits",
        metadata={"run": 7},
        limit=10,
        before="0" * 32,
    )
    assert_type(infos, list[JobInfo])
    client.jobs(state="failed")
    info = infos[0]
    assert_type(info.id, str)
    assert_type(info.state, JobState)
    assert_type(info.state.final, bool)
    assert_type(info.kind.value, str)
    assert_type(info.model, str)
    assert_type(info.version, int)
    assert_type(info.queue, str)
    assert_type(info.priority, int)
    assert_type(info.attempt, int)
    assert_type(info.max_attempts, int)
    assert_type(info.worker, str | None)
    assert_type(info.created_at, dt.datetime)
    assert_type(info.started_at, dt.datetime | None)
    assert_type(info.finished_at, dt.datetime | None)
    assert_type(info.deadline_at, dt.datetime | None)
    assert_type((info.progress.done, info.progress.total, info.progress.message), tuple[int, int, str])
    if info.error is not None:
        assert_type((info.error.type, info.error.message), tuple[str, str])
    assert_type(info.metadata, Mapping[str, Any])
    assert_type(info.parent_id, str | None)
    assert_type(info.cancel_requested_at, dt.datetime | None)
    assert_type(info.not_before, dt.datetime | None)
    info.state = JobState.FAILED  # type: ignore[misc]

    queue = client.queues()[0]
    assert_type((queue.name, queue.depth, queue.running), tuple[str, int, int])
    assert_type(queue.oldest_age_s, float | None)
    assert_type(queue.workers, tuple[str, ...])
    assert_type(queue.capacity, Mapping[str, float])
    assert_type(queue.max_queue_size, int | None)


def models(client: Client) -> None:
    version = client.models.register("digits", "digits.pt2")
    assert_type(version, ModelVersion)
    client.models.register(
        "double",
        None,
        runtime="python",
        inputs={"x": {"dtype": "float32", "shape": [64], "nan": False}},
        outputs={"y": {"dtype": "str"}},
        max_batch_size=8,
        batch_wait_timeout_s=0.1,
        timeout_s=30,
        resources={"gpu_memory": "2GiB", "gpu": 1},
        options={"class": "package.module:Class"},
        metadata={"owner": "vision"},
    )
    client.models.register("digits", Path("digits.pt2"))
    assert_type(version.ref, str)
    assert_type(version.name, str)
    assert_type(version.version, int)
    assert_type(version.runtime, str)
    assert_type(version.aliases, tuple[str, ...])
    assert_type(version.max_batch_size, int)
    assert_type(version.resources, Mapping[str, float])
    assert_type(version.metadata, Mapping[str, Any])
    assert_type(client.models.get("digits@champion"), ModelVersion)
    assert_type(client.models.list(), list[ModelVersion])
    assert_type(client.models.list("digits"), list[ModelVersion])
    found = client.models.search(
        inputs={"x": {"dtype": "float32", "shape": [64]}}, resources={"gpu": 1}, metadata={"a": 1}
    )
    assert_type(found, list[ModelVersion])
    assert_type(client.models.set_alias("digits", "champion", 3), ModelVersion)
    client.models.drop_alias("digits", "champion")
    assert_type(client.models.delete("digits/1"), ModelVersion)


def errors(job: Job) -> None:
    try:
        job.result(1)
    except JobFailed as error:
        assert_type((error.type, error.reason), tuple[str, str])
    except (JobCanceled, JobExpired, ResultTimeout):
        pass
    full = QueueFull()
    assert_type((full.queue, full.depth, full.maximum, full.retry_after_s), tuple[str, int, int, float | None])
    every: Sequence[type[ForebayError]] = (
        BrokerUnavailable, InvalidInput, JobNotFound, LedgerUnavailable, ModelNotFound, NoQueueFits, PayloadTooLarge, QueueFull,
        Transient,
    )  # fmt: skip
    builtin: Sequence[type[Exception]] = every
    value_error: type[ValueError] = InvalidInput
    lookup_error: type[LookupError] = JobNotFound
    timeout_error: type[TimeoutError] = ResultTimeout
    too_large: type[InvalidInput] = PayloadTooLarge
    may_pass: Sequence[type[Transient]] = (BrokerUnavailable, LedgerUnavailable)
    repr((may_pass, builtin, value_error, lookup_error, timeout_error, too_large))
    assert_type(forebay.__all__, list[str])
