"""`forebay train` and `forebay evaluate` as a user types them, on a stack whose workers train for real."""

import hashlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from forebay import Client, Evaluation, JobState
from forebay.producer.handles.job import Job
from support.user import TIMEOUT_S, User, running
from support.waiting import wait_until

pytestmark = pytest.mark.timeout(600)

NET = ("--param", "channels=16,32")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """Somebody with a stack that predicts and trains, and scikit-learn's digits as Parquet."""
    user = User(tmp_path_factory.mktemp("trainer"), {"FOREBAY_SHUTDOWN_GRACE_S": "20"})
    digits = load_digits()
    images = (digits.data.reshape(-1, 8, 8) / 16).astype(np.float32)
    table = pa.table(
        {"image": pa.array(images.tolist(), pa.list_(pa.list_(pa.float32(), 8), 8)), "label": digits.target}
    )
    pq.write_table(table, user.folder / "digits.parquet")
    with user.up("--no-dashboard", "--no-api"):
        yield user


@pytest.fixture
def client(trainer: User) -> Iterator[Client]:
    with trainer.client() as client:
        yield client


def ask(*more: str, lr: float = 0.003, target: str = "label") -> list[str]:
    given = ["train", "digits", "--recipe", "image-classifier", "--dataset", "digits.parquet", "--target", target]
    return [*given, *NET, "--param", f"lr={lr}", *more]


class Predicting:
    """Predictions of one image after the other by the alias, until it is stopped."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self.done: list[tuple[int, JobState]] = []  # versions, and how the training job stood when the result was there
        self.follow: Job | None = None
        self.failures: list[Exception] = []

    def __enter__(self) -> "Predicting":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join(TIMEOUT_S)

    def during(self, state: JobState) -> list[int]:
        return [version for version, then in self.done if then is state]

    def _go_on(self) -> None:
        image = np.zeros((8, 8), np.float32)
        while not self._stop.wait(0.05):
            try:
                job = self._client.predict("digits@champion", image)
                result = job.result(TIMEOUT_S)
                assert set(result) == {"label", "probabilities"}
                state = self.follow.info().state if self.follow is not None else JobState.QUEUED
                self.done.append((job.info().version, state))
            except Exception as error:  # noqa: BLE001 - shown by the test
                self.failures.append(error)
                return


def test_a_better_version_takes_the_alias_while_predictions_go_on_and_serves_the_next_one(
    trainer: User, client: Client
) -> None:
    first = trainer.json(*ask("--epochs", "1", "--alias", "champion"))
    assert (first["model"], first["promoted"], first["verdict"][:16]) == ("digits/1", True, "@champion is new")
    id = trainer.ok(*ask("--epochs", "8", "--alias", "champion", "--no-wait")).strip()
    with Predicting(client) as predicting:
        predicting.follow = client.job(id)
        assert trainer.json("jobs", "wait", id, "--timeout", f"{TIMEOUT_S}s")[0]["state"] == "succeeded"
        seen = len(predicting.done)
        wait_until(lambda: len(predicting.done) > seen + 2 or predicting.failures, "more was predicted", TIMEOUT_S)
    assert predicting.failures == []
    assert len(predicting.during(JobState.RUNNING)) > 3, "predictions went on while it was trained"
    versions = [version for version, _ in predicting.done]
    assert versions == sorted(versions)
    assert set(predicting.during(JobState.RUNNING)) == {1}
    assert versions[-1] == 2, "the alias' new version serves as soon as it is asked for"
    job = client.job(id)
    version = job.result(120)
    assert (version.ref, version.aliases) == ("digits/2", ("champion",))
    assert version.metadata["metrics"]["accuracy"] > max(0.9, first["metrics"]["accuracy"])
    assert version.metadata["lineage"]["job"] == id
    losses = [row["loss"] for row in job.metrics() if row["split"] == "train"]
    assert losses[-1] < losses[0]
    assert {row["split"] for row in job.metrics()} >= {"train", "validation"}
    shown = trainer.ok("jobs", "show", id)
    for word in (
        "digits/2",
        "image-classifier",
        "channels=16,32",
        "1,258 train, 180 validation, 359 test",
        "@champion moved",
    ):
        assert word in shown


def test_a_worse_version_is_registered_and_the_alias_stays(trainer: User) -> None:
    told = trainer.ok(*ask("--epochs", "1", "--alias", "champion", lr=1e-6))
    assert "digits/3" in told
    assert "@champion stays at digits/2: accuracy" in told
    assert trainer.json("models", "show", "digits@champion")["version"] == 2


def test_a_version_is_evaluated_as_a_job_and_the_record_is_kept(trainer: User, client: Client) -> None:
    text = trainer.ok("evaluate", "digits@champion", "digits.parquet", "--target", "label")
    for word in ("digits/2", "1,797", "accuracy 0.9", "ms per row", "TRUE"):
        assert word in text
    assert "digits/2 was trained on this data set: the metrics are too good" in text
    [kept] = client.models.evaluations("digits/2")
    assert kept.sha256 == hashlib.sha256((trainer.folder / "digits.parquet").read_bytes()).hexdigest()
    assert client.models.get("digits/2").metadata["lineage"]["sha256"] == kept.sha256
    assert isinstance(kept, Evaluation)
    assert kept.metrics["accuracy"] is not None
    assert kept.metrics["accuracy"] > 0.9
    assert kept.confusion is not None
    assert sum(map(sum, kept.confusion)) == 1797
    assert kept.classes == [str(i) for i in range(10)]
    shown = trainer.ok("models", "show", "digits/2")
    assert kept.id in shown
    assert "digits.parquet" in shown


def test_ctrl_c_leaves_it_running_and_a_retry_after_a_cancel_goes_on_from_the_checkpoint(
    trainer: User, client: Client
) -> None:
    with running(trainer, *ask("--epochs", "2000", "--checkpoint-steps", "20", "--metadata", "long=1")) as command:
        wait_until(lambda: client.jobs(metadata={"long": 1}), "it was submitted", TIMEOUT_S)
        [info] = client.jobs(metadata={"long": 1})
        job = client.job(info.id)
        wait_until(lambda: job.info().state is JobState.RUNNING and job.checkpoints, "a checkpoint is kept", TIMEOUT_S)
        command.send_signal(signal.SIGINT)
        assert command.wait(TIMEOUT_S) == 130
    assert f"the job goes on: forebay jobs wait {job.id}" in trainer.said("train")
    assert job.state is JobState.RUNNING
    trainer.ok("jobs", "cancel", job.id, "--wait")
    assert job.info().state is JobState.CANCELED
    step = job.checkpoints[0].step
    trainer.ok("jobs", "retry", job.id)
    wait_until(lambda: job.run.resumed == 1 and job.metrics(after=step), "it goes on", TIMEOUT_S)
    assert "1 times, from a checkpoint" in trainer.ok("jobs", "show", job.id)
    trainer.ok("jobs", "cancel", job.id, "--wait")


def test_data_that_cannot_be_learned_fails_the_job_with_the_reason(trainer: User, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": np.arange(50.0), "label": ["a"] * 50}), tmp_path / "one.parquet")
    done = trainer.run(
        "train", "sides", "--recipe", "classifier", "--dataset", str(tmp_path / "one.parquet"), "--target", "label"
    )
    assert done.returncode == 1
    assert "'label' is 'a' in all" in done.stderr
    assert "no column 'digit'" in trainer.refused(*ask(target="digit"))


SPELLINGS = ["", "NA", "NaN", " "]  # of a gap in text; null is one too


def test_a_model_trained_with_gaps_takes_them_in_batch_evaluate_and_at_the_command_line(
    trainer: User, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = [
        [SPELLINGS[i % 4] if i % 3 == 0 else f"{rng.normal():.3f}", SPELLINGS[i % 4] if i % 5 == 0 else "ab"[i % 2]]
        for i in range(200)
    ]
    lines = [f"{size},{city},{'yes' if i % 2 else 'no'}" for i, (size, city) in enumerate(rows)]
    (tmp_path / "rows.csv").write_text("\n".join(["size,city,label", *lines]) + "\n")
    named = ("--recipe", "classifier", "--dataset", str(tmp_path / "rows.csv"), "--target", "label", "--epochs", "1")
    assert "gaps/1" in trainer.ok("train", "gaps", *named, "--missing", "mean")

    # One row with both gaps, in every spelling and in every form, has one result.
    gaps: list[Any] = [None, *SPELLINGS]
    (tmp_path / "gaps.csv").write_text("size,city\n" + "".join(f"{gap},{gap}\n" for gap in SPELLINGS))
    (tmp_path / "gaps.jsonl").write_text("".join(json.dumps({"size": g, "city": g or None}) + "\n" for g in gaps))
    number = pa.array([None, float("nan"), None, None], pa.float64())
    pq.write_table(pa.table({"size": number, "city": ["", None, "NA", "NaN"]}), tmp_path / "gaps.parquet")
    told = trainer.ok("predict", "gaps", json.dumps([{"size": gap, "city": gap} for gap in gaps]), "--each")
    alone, *others = [json.loads(line)["result"] for line in told.splitlines()]
    assert set(alone["probabilities"]) == {"yes", "no"}
    for other in others:
        assert other["label"] == alone["label"]
        assert other["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-6)
    for name, count in (("gaps.csv", 4), ("gaps.jsonl", 5), ("gaps.parquet", 4)):
        out = tmp_path / f"out-{name}"
        made = trainer.json("batch", "gaps", str(tmp_path / name), str(out), "--output-format", "jsonl")
        assert made["request_counts"] == {"total": count, "completed": count, "failed": 0}
        for part in out.glob("part-*.jsonl"):
            for line in part.read_text().splitlines():
                row = json.loads(line)
                assert row["label"] == alone["label"]
                assert row["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-6), name

    # Rows of the training data in another file and format are known again.
    head = [line.split(",") for line in lines[:60]]
    (tmp_path / "some.jsonl").write_text(
        "".join(json.dumps({"size": size, "city": city, "label": label}) + "\n" for size, city, label in head)
    )
    found = trainer.json("evaluate", "gaps", str(tmp_path / "some.jsonl"), "--target", "label")
    assert (found["rows"], found["failed"]) == (60, 0)
    assert "gaps/1 was trained on rows with the same inputs as" in found["warning"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_command_searches_parameters_and_the_best_trial_is_served_by_the_alias(
    trainer: User, client: Client
) -> None:
    data = ["--recipe", "image-classifier", "--dataset", "digits.parquet", "--target", "label", *NET]
    spaces = ["--space", "lr=1e-5..1e-1:log", "--space", "hidden=32|64,32"]
    how = ["--trials", "8", "--parallel", "2", "--epochs", "4", "--alias", "champion"]
    id = trainer.ok("tune", "searched", *data, *spaces, *how, "--no-wait").strip()
    assert client.job(id).wait(1500)
    told = trainer.json("jobs", "show", id)
    assert (told["state"], [trial["state"] for trial in told["trials"]]) == ("succeeded", ["succeeded"] * 8)
    best = told["trials"][told["best"]]
    assert best["value"] == max(trial["value"] for trial in told["trials"])
    version = client.models.get("searched@champion")
    assert (version.version, version.metadata["lineage"]["tune"]) == (1, id)
    assert version.metadata["metrics"]["accuracy"] > 0.8
    result: Any = client.predict("searched@champion", np.zeros((8, 8), np.float32)).result(TIMEOUT_S)
    assert result["label"] in [str(digit) for digit in range(10)]
    assert f"trial {told['best']}, " in trainer.ok("jobs", "show", id)
