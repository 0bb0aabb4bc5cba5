"""A tune of the digits for real, whose child and worker are killed in between: what it finds, runs and costs."""

import os
import signal
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from forebay.producer.handles.kinds import TuningJob
from support.training_stack import LONG_S, TrainingStack
from support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TRIALS = 20
SPACE = {"lr": {"low": 1e-5, "high": 1e-1, "log": True}, "hidden": [32, 128], "dropout": {"low": 0.0, "high": 0.5}}


def digits_file(folder: Path) -> str:
    images, labels = load_digits(return_X_y=True)
    table = pa.table({"image": list(images.astype("float32") / 16), "label": labels.astype("int64")})
    pq.write_table(table, folder / "digits.parquet")
    return str(folder / "digits.parquet")


def ended(job: TuningJob) -> int:
    return sum(not trial.open for trial in job.trials)


def test_twenty_trials_of_the_digits_with_two_kills_find_what_is_no_worse_than_the_defaults(
    training: TrainingStack, tmp_path: Path
) -> None:
    training.trainer("t0").ready()
    asked = {
        "recipe": "image-classifier", "dataset": digits_file(tmp_path), "target": "label", "params": {"epochs": 10}, "seed": 1
    }  # fmt: skip
    plain = training.client.train("plain", **asked).result(LONG_S)
    job = training.client.tune("digits", space=SPACE, trials=TRIALS, pruner="median", alias="champion", **asked)
    assert isinstance(job, TuningJob)
    wait_until(lambda: ended(job) >= 4, "some trials have ended", LONG_S)
    [child] = training.workers[-1].children()
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: ended(job) >= 9, "more trials have ended", LONG_S)
    training.kill_worker(training.workers[-1])
    training.trainer("t1").ready()
    assert job.wait(1200)
    trials, version = job.trials, job.result(0)
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert len({str(trial.params) for trial in trials}) == TRIALS
    assert {trial.state for trial in trials} <= {"succeeded", "pruned"}
    assert [version.ref for version in training.client.models.list("digits")] == ["digits/1"]
    assert version.aliases == ("champion",)
    pruned = [trial for trial in trials if trial.state == "pruned"]
    cost = sum(trial.steps for trial in pruned) / sum(trial.planned or 0 for trial in pruned)
    accuracy, by_default = version.metadata["metrics"]["accuracy"], plain.metadata["metrics"]["accuracy"]
    told = f"{len(pruned)} of {TRIALS} pruned at {cost:.0%} of their steps; accuracy {accuracy:.4f}, by default {by_default:.4f}"
    sys.stderr.write(f"{told}\n")
    assert len(pruned) >= 3
    assert cost < 0.5
    assert accuracy >= by_default
    assert job.best is not None
    assert job.best.value is not None
    assert job.best.value >= (trials[0].value or 0.0)
