"""Evaluations on a real worker: any runtime, whatever happens meanwhile, and one record of it with the version."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from forebay import Evaluation, InvalidInput, JobFailed
from forebay.contract.job import JobState
from forebay.producer.handles.job import Job
from support.datasets import vectors, write_parquet
from support.waiting import wait_until
from support.worker_stack import WorkerStack

SLOW = {"inputs": {"x": {"dtype": "float32", "shape": [4]}}, "outputs": {"y": {"dtype": "float32", "shape": []}}}
TEXT = {"inputs": {"text": {"dtype": "str"}}, "outputs": {"out": {"dtype": "str"}}}


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    """A stack whose worker serves all tests that leave it alone."""
    stack = open_stack()
    stack.worker().ready()
    return stack


def found(job: Job) -> Evaluation:
    result = job.result(120)
    assert isinstance(result, Evaluation)
    return result


def slow_job(stack: WorkerStack, folder: Path, rows: int) -> Job:
    """An evaluation that takes 20 ms for every 16 rows; twice the row's number is held against the number."""
    model = stack.model("Slowly", max_batch_size=16, **SLOW)
    return stack.client.evaluate(model, write_parquet(folder / "in", [vectors(rows)]), target="id", columns="x")


def test_numbers_are_scored_and_the_record_stays_with_the_version(stack: WorkerStack, tmp_path: Path) -> None:
    model = stack.model("Slowly", **SLOW)
    data = write_parquet(tmp_path / "in", [vectors(100), vectors(50)])
    job = stack.client.evaluate(model, data, target="id", columns="x")
    result = found(job)
    numbers = np.concatenate([np.arange(100.0), np.arange(50.0)])
    assert result.metrics["mae"] == pytest.approx(numbers.mean())
    assert result.metrics["rmse"] == pytest.approx(np.sqrt((numbers**2).mean()))
    assert (result.rows, result.failed, result.confusion, result.classes) == (150, 0, None, None)
    assert 0 < result.ms_per_row < 1000
    content = b"".join(path.read_bytes() for path in sorted((tmp_path / "in").glob("*.parquet")))
    assert result.sha256 == hashlib.sha256(content).hexdigest()
    assert result.warning == ""
    assert str(tmp_path / "in") in result.dataset
    info = job.info()
    assert (info.state, info.progress.done, info.progress.total) == (JobState.SUCCEEDED, 150, 150)
    [kept] = stack.client.models.evaluations(model)
    assert (kept.id, kept.metrics, kept.rows) == (job.id, result.metrics, 150)


def test_labels_are_counted_and_rows_that_fail_are_left_out(stack: WorkerStack, tmp_path: Path) -> None:
    model = stack.model("Shout", **TEXT)
    rows = [("red", "RED"), ("red", "BLUE"), ("blue", "BLUE"), (None, "RED"), ("red", None)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": text, "truth": truth}) + "\n" for text, truth in rows))
    result = found(stack.client.evaluate(model, data, target="truth"))
    assert (result.rows, result.failed) == (3, 2)
    assert result.classes == ["BLUE", "RED"]
    assert result.confusion == [[1, 1], [0, 1]]
    assert result.metrics["accuracy"] == pytest.approx(2 / 3)


def test_an_image_folder_is_scored_by_the_folders_names(stack: WorkerStack, tmp_path: Path) -> None:
    shape = {"inputs": {"image": {"dtype": "uint8", "shape": [-1, -1]}}}
    model = stack.model("Brightness", **shape)
    for name, value in (("0", 0), ("200", 200)):
        (tmp_path / "shades" / name).mkdir(parents=True)
        Image.new("L", (3, 3), value).save(tmp_path / "shades" / name / "a.png")
    assert found(stack.client.evaluate(model, tmp_path / "shades", target="label")).metrics["mae"] == 0


def test_nothing_that_can_be_compared_fails_the_job_with_the_first_reason(stack: WorkerStack, tmp_path: Path) -> None:
    model = stack.model("Slowly", **SLOW)
    (tmp_path / "rows.jsonl").write_text('{"x": [-1, 0, 0, 0], "y": 1}\n')
    with pytest.raises(JobFailed, match="ValueError: a negative number"):
        stack.client.evaluate(model, tmp_path / "rows.jsonl", target="y", columns="x").result(120)
    (tmp_path / "words.jsonl").write_text('{"x": [1, 0, 0, 0], "y": "red"}\n')
    with pytest.raises(JobFailed, match="the model gives numbers, and a target is not a number"):
        stack.client.evaluate(model, tmp_path / "words.jsonl", target="y", columns="x").result(120)
    assert stack.client.models.evaluations(model) == []


def test_a_running_evaluation_is_canceled_and_leaves_no_record(stack: WorkerStack, tmp_path: Path) -> None:
    job = slow_job(stack, tmp_path, 20_000)
    wait_until(lambda: job.info().progress.done > 0, "some rows have run")
    info = job.info()
    assert 0 < info.progress.done < info.progress.total == 20_000
    assert "rows/s" in info.progress.message
    assert job.cancel() is JobState.RUNNING
    wait_until(job.done, "it has stopped")
    assert job.state is JobState.CANCELED
    assert stack.client.models.evaluations(f"{info.model}/{info.version}") == []


def test_a_worker_that_is_told_to_stop_gives_it_back_uncounted_and_another_does_it(
    own: WorkerStack, tmp_path: Path
) -> None:
    worker = own.worker("w1").ready()
    job = slow_job(own, tmp_path, 2000)
    wait_until(lambda: len(own.runs()) > 50, "some rows have run")
    assert worker.terminate() == 0
    info = job.info()
    assert (info.state, info.attempt, info.worker) == (JobState.QUEUED, 0, None)
    own.worker("w2")
    assert found(job).rows == 2000
    assert job.info().attempt == 1


def test_a_killed_worker_costs_an_attempt_and_there_is_one_record_in_the_end(own: WorkerStack, tmp_path: Path) -> None:
    worker = own.worker("w1").ready()
    job = slow_job(own, tmp_path, 2000)
    wait_until(lambda: len(own.runs()) > 50, "some rows have run")
    worker.kill()
    own.worker("w2")
    assert found(job).rows == 2000
    assert job.info().attempt == 2
    assert len(own.client.models.evaluations("slowly")) == 1


def test_a_transient_error_of_the_model_queues_it_again(own: WorkerStack, tmp_path: Path) -> None:
    model = own.model("Unsteady", **SLOW)
    (own.folder / "away").touch()
    own.worker().ready()
    job = own.client.evaluate(model, write_parquet(tmp_path / "in", [vectors(50)]), target="id", columns="x")
    wait_until(lambda: own.store.queries.past_attempts(job.id), "it was postponed")
    assert own.store.queries.past_attempts(job.id)[0].reason == "Transient: the feature store answers 503"
    (own.folder / "away").unlink()
    assert found(job).rows == 50


def test_what_a_worker_serves_is_held_against_a_data_set(stack: WorkerStack, tmp_path: Path) -> None:
    """The way of the counts: child, parent, ledger. A column that is shifted is named, and no other."""
    draw = np.random.default_rng(0)
    field = {"x": {"dtype": "float32", "shape": [4]}}
    model = stack.model("Echo", "echoed", inputs=field, outputs=field)
    models = stack.client.models
    with pytest.raises(InvalidInput, match="has no reference"):
        models.drift(model)
    np.save(tmp_path / "before.npy", draw.normal(size=(300, 4)).astype(np.float32))
    made = models.reference(model, tmp_path / "before.npy").result(60)
    assert made == {"model": model, "rows": 300, "failed": 0, "columns": 8, "unwatched": []}
    served = draw.normal(size=(240, 4)).astype(np.float32)
    served[:, 2] += 1
    for job in stack.client.predict_many(model, served[:120]):
        job.result(60)
    np.save(tmp_path / "later.npy", served[120:])
    stack.client.batch(model, tmp_path / "later.npy", tmp_path / "out").result(60)
    wait_until(lambda: models.drift(model).rows == 240, "the counts are in the ledger")
    drift = models.drift(model)
    assert [column.name for column in drift.drifted if column.side == "input"] == ["x[2]"]
    assert {column.rows for column in drift.columns} == {240}
    assert drift.source == str(tmp_path / "before.npy")
