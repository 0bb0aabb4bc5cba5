"""What a user asks of a tune: refused at submit, kept in the job, shown with its trials. No trial is trained here."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forebay import Client, InvalidInput, NoQueueFits
from forebay.contract.errors import ModelNotFound
from forebay.contract.job import JobError, JobKind
from forebay.contract.model import ModelVersion
from forebay.contract.requests.training import Trained
from forebay.contract.requests.tuning import Range
from forebay.contract.signature import Signature
from forebay.contract.wire import codec
from forebay.producer.handles.kinds import TrainingJob, TuningJob
from forebay.storage.jobs.records import Finished
from forebay.storage.tuning.store import TuneStore
from support.commands import Shell

ASKED = {"recipe": "classifier", "target": "label", "dataset": "data.parquet"}
LINE = ["tune", "digits", "--recipe", "classifier", "--target", "label", "--dataset", "data.parquet"]


@pytest.fixture
def client(shell: Shell) -> Iterator[Client]:
    pq.write_table(pa.table({"x": [0.0, 1.0] * 5, "label": ["a", "b"] * 5}), shell.home / "data.parquet")
    with Client() as client:
        yield client


def test_a_tune_keeps_what_was_asked_and_goes_where_its_trials_go(shell: Shell, client: Client) -> None:
    space = {"lr": {"low": 1e-4, "high": 0.1, "log": True}, "hidden": [32, (64, 32)]}
    job = client.tune(
        "digits", space=space, trials=7, pruner="median", parallel=2, params={"epochs": 3}, alias="champion", seed=5,
        metadata={"team": "a"}, **ASKED,
    )  # fmt: skip
    info, request = job.info(), job.request
    assert (info.kind, info.queue, info.max_attempts, info.model, info.version) == (
        JobKind.TUNE,
        "train",
        10,
        "digits",
        0,
    )
    assert request.space == {"lr": Range(0.0001, 0.1, log=True), "hidden": ([32], [64, 32])}
    assert (request.trials, request.pruner, request.parallel, request.sampler) == (7, "median", 2, "tpe")
    assert (request.train.alias, request.train.seed, request.train.metric) == ("champion", 5, "accuracy")
    assert (request.train.params["epochs"], request.train.metadata) == (3, {"team": "a"})
    assert isinstance(client.job(job.id), TuningJob)
    assert (job.trials, job.best) == ([], None)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"space": {"nope": [1]}}, "recipe 'classifier' has no parameter 'nope'"),
        ({"space": {"lr": [0.1]}, "trials": 0}, "trials: expected a whole number, from 1 to 1,000, got 0"),
        ({"space": {"lr": [0.1]}, "sampler": "best"}, "sampler: expected one of grid, random, tpe, got 'best'"),
        ({"space": {"lr": [0.1]}, "pruner": "best"}, "pruner: expected one of halving, median, got 'best'"),
        ({"space": {"lr": [0.1]}, "parallel": 65}, "parallel: expected a whole number, from 1 to 64, got 65"),
        ({"space": {"lr": [0.1]}, "params": {"lr": 0.2}}, "lr is in params and in space"),
        ({"space": {"lr": {"low": 0.1, "high": 1}}, "sampler": "grid"}, "space: lr has no end of values for a grid"),
        ({"space": {"lr": [0.1]}, "split": {"validation": 0.0}}, "trials are compared by their validation rows"),
        ({"space": {"lr": [0.1]}, "metric": "rmse"}, "recipe 'classifier' cannot be judged by 'rmse'"),
        ({"space": {"lr": [0.1]}, "target": "nope"}, "target: there is no column 'nope'"),
    ],
)  # fmt: skip
def test_what_cannot_be_tuned_is_refused_before_anything_is_stored(
    client: Client, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        client.tune("digits", **(ASKED | asked))
    assert client.jobs() == []


def test_a_queue_that_takes_no_training_jobs_takes_no_tune(client: Client) -> None:
    with pytest.raises(NoQueueFits):
        client.tune("digits", space={"lr": [0.1]}, queue="cpu", **ASKED)


def test_the_command_reads_ranges_and_lists(shell: Shell, client: Client) -> None:
    spaces = [
        "lr=1e-4..1e-1:log",
        "epochs=5..20:5",
        "hidden=64,32|128",
        "normalize=true,false",
        "dropout=0..0.5",
        "optimizer=adam",
    ]
    given = [word for space in spaces for word in ("--space", space)]
    result = shell.out(*LINE, *given, "--trials", "3", "--pruner", "halving", "--param", "batch_size=16", "--no-wait")
    request = TuningJob(client.session, result.strip()).request
    assert request.space == {
        "lr": Range(1e-4, 0.1, log=True), "epochs": Range(5, 20, step=5), "hidden": ([64, 32], [128]),
        "normalize": (True, False), "dropout": Range(0.0, 0.5), "optimizer": ("adam",),
    }  # fmt: skip
    assert (request.trials, request.pruner, request.train.params["batch_size"]) == (3, "halving", 16)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("lr", "is not NAME=VALUES"), ("lr=", "is not NAME=VALUES"), ("lr=a..b", "a range is LOW..HIGH"),
        ("lr=1..2:big", "a range is LOW..HIGH"), ("lr=0.1..0.01", "low 0.1 is not below high 0.01"),
    ],
)  # fmt: skip
def test_the_command_says_what_a_space_looks_like(shell: Shell, client: Client, space: str, words: str) -> None:
    assert words in shell.error(*LINE, "--space", space)
    assert "gives 'lr' twice" in shell.error(*LINE, "--space", "lr=1", "--space", "lr=2")


def test_a_tune_is_shown_with_its_trials_and_no_trial_passes_for_a_version(shell: Shell, client: Client) -> None:
    job = client.tune("digits", space={"hidden": [32, 64], "lr": [0.1, 0.2]}, trials=2, **ASKED)
    tunes = TuneStore(shell.store.ledger)
    [claimed] = shell.store.claim([job.id], "w@host", 30)
    tunes.start(claimed)
    for number, params in enumerate([{"hidden": [32], "lr": 0.1}, {"hidden": [64], "lr": 0.2}]):
        tunes.add_trial(tunes.queries.get(job.id), number, params, (b"{}", None))
    first, second = (trial.job for trial in job.trials)
    [one] = shell.store.claim([first], "w@host", 30)
    place = tunes.queries.place(first)
    assert place is not None
    model = ModelVersion(
        "digits", 0, "recipe", "sha256:" + "0" * 64, "folder", 10, Signature.parse(None, None),
        metadata={"metrics": {"accuracy": 0.8}},
    )  # fmt: skip
    told = codec.encode({"tune": job.id, "trial": 0})
    tunes.finish_trial(one, place, "accuracy", 0.9, Trained({"accuracy": 0.8}, "recipe", {}, {}), model, told)
    [other] = shell.store.claim([second], "w@host", 30)
    shell.store.finish([Finished(second, other.attempt, error=JobError("InvalidInput", "too few rows"))])
    shown = shell.out("jobs", "show", job.id)
    assert "1 succeeded, 1 failed" in shown
    assert "trial 0, 0.9: hidden=32, lr=0.1" in shown
    assert "InvalidInput: too few rows" in shown
    told_json = json.loads(shell.out("jobs", "show", job.id, "--json"))
    assert (told_json["best"], [trial["state"] for trial in told_json["trials"]]) == (0, ["succeeded", "failed"])
    trial = client.job(first)
    assert isinstance(trial, TrainingJob)
    with pytest.raises(ModelNotFound, match=f"trial 0 of the tune {job.id}"):
        trial.result(0)
    assert client.models.list() == []
