"""What the ledger keeps of training runs, and that only the attempt that holds the job may write it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from threading import Thread
from typing import Any

import pytest
from msgspec import structs

from forebay.contract.errors import JobNotFound
from forebay.contract.job import JobKind, JobState, Progress, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.requests.request import encode
from forebay.contract.requests.training import DataSummary, Point, Trained, TrainRequest, better
from forebay.contract.signature import Signature
from forebay.storage.jobs.records import ClaimedJob, LeaseLost, NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.derived import derived_metadata
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.records import Evaluation
from forebay.storage.training.store import TrainingStore

REQUEST = TrainRequest("classifier", (), "parquet", target="label", metric="accuracy", alias="champion")
ANY = Signature()
DATA = DataSummary({"train": 8, "test": 2}, "ab" * 32, ("x", "y"), ("no", "yes"), dropped=1)


@pytest.fixture
def runs(ledger: Ledger) -> TrainingStore:
    return TrainingStore(ledger)


def claimed(store: JobStore) -> ClaimedJob:
    [id] = new_ids(1)
    store.add([NewJob(id, JobKind.TRAIN, "digits", 0, "train", input=encode(REQUEST))])
    [job] = store.claim([id], "w@host", 30)
    return job


def version(metrics: Mapping[str, float], signature: Signature = ANY, **lineage: Any) -> ModelVersion:
    return ModelVersion(
        "digits", 0, "recipe", "sha256:" + "0" * 64, "folder", 10, signature,
        metadata={"metrics": dict(metrics)} | ({"lineage": lineage} if lineage else {}),
    )  # fmt: skip


def finish(
    runs: TrainingStore, job: ClaimedJob, accuracy: float, signature: Signature = ANY, **lineage: Any
) -> tuple[int, bool | None, str | None]:
    metrics = {"accuracy": accuracy}
    made, ended = runs.finish(
        job, REQUEST, version(metrics, signature, **lineage),
        Trained(metrics, "recipe", {}, {}, confusion=[[1, 0], [0, 1]]), "accuracy",
        lambda model, moved, why: json.dumps([model.ref, moved, why]).encode(),
    )  # fmt: skip
    assert ended.id == job.id
    run = runs.queries.run(job.id)
    assert run.state is JobState.SUCCEEDED
    assert run.version == made.version
    return made.version, run.promoted, run.verdict


def test_a_run_tells_what_was_found_measured_and_saved(store: JobStore, runs: TrainingStore) -> None:
    job = claimed(store)
    with pytest.raises(JobNotFound):
        runs.queries.run(job.id)
    runs.start(job, REQUEST)
    runs.set_data(job, DATA)
    points = [Point(step, 0, "train", {"loss": 1 / step}, rows_per_s=5.0, steps=20) for step in (5, 10)]
    runs.add_metrics(job, [*points, Point(10, 1, "validation", {"accuracy": 0.5})], "epoch 1")
    run = runs.queries.run(job.id)
    assert (run.recipe, run.data, run.steps, run.resumed) == ("classifier", DATA, 20, 0)
    assert run.request["target"] == "label"
    assert [(m.split, m.step, m.values) for m in runs.queries.curve(job.id)] == [
        ("train", 5, {"loss": 0.2}), ("train", 10, {"loss": 0.1}), ("validation", 10, {"accuracy": 0.5}),
    ]  # fmt: skip
    assert [m.step for m in runs.queries.curve(job.id, after=5)] == [10, 10]
    info = store.queries.get(job.id)
    assert (info.progress.done, info.progress.total, info.progress.message) == (10, 20, "epoch 1")
    assert runs.queries.runs_by_id([job.id, "0" * 32]) == {job.id: runs.queries.run(job.id)}


def test_only_the_last_checkpoints_are_kept_and_the_other_blobs_are_told(store: JobStore, runs: TrainingStore) -> None:
    job = claimed(store)
    runs.start(job, REQUEST)
    assert runs.add_checkpoint(job, 10, 0, "sha256:a", 5, keep=2) == []
    assert runs.add_checkpoint(job, 20, 0, "sha256:b", 5, keep=2) == []
    assert runs.add_checkpoint(job, 30, 1, "sha256:b", 5, keep=2) == ["sha256:a"]
    assert runs.add_checkpoint(job, 40, 1, "sha256:c", 5, keep=2) == ["sha256:b"], "step 20 went"
    assert runs.queries.used_checkpoints(["sha256:a", "sha256:b"]) == {"sha256:b"}, "step 30 has the same content"
    assert [(c.step, c.blob) for c in runs.queries.checkpoints(job.id)] == [(40, "sha256:c"), (30, "sha256:b")]


def test_a_later_attempt_goes_on_from_the_last_checkpoint_and_measures_the_rest_again(
    store: JobStore, runs: TrainingStore
) -> None:
    job = claimed(store)
    runs.start(job, REQUEST)
    runs.add_checkpoint(job, 10, 0, "sha256:a", 5, keep=2)
    runs.add_metrics(job, [Point(step, 0, "train", {"loss": 1.0}) for step in (5, 10, 15)], "")
    store.free_crashed([job.id], "w@host", "gone")
    [again] = store.claim([job.id], "w2@host", 30)
    runs.start(again, REQUEST)
    [last] = runs.queries.checkpoints(job.id)
    assert (last.step, last.blob, last.attempt) == (10, "sha256:a", 1)
    runs.resume(again, 10)
    assert [m.step for m in runs.queries.curve(job.id)] == [5, 10]
    assert runs.queries.run(job.id).resumed == 1


def test_who_has_lost_the_lease_writes_nothing_and_registers_nothing(
    store: JobStore, runs: TrainingStore, registry: ModelRegistry
) -> None:
    job = claimed(store)
    runs.start(job, REQUEST)
    store.free_crashed([job.id], "w@host", "gone")
    [again] = store.claim([job.id], "w2@host", 30)
    for write in (
        lambda: runs.start(job, REQUEST),
        lambda: runs.resume(job, 1),
        lambda: runs.set_data(job, DATA),
        lambda: runs.add_metrics(job, [Point(1, 0, "train", {"loss": 1.0})], ""),
        lambda: runs.add_checkpoint(job, 1, 0, "sha256:a", 5, keep=2),
        lambda: finish(runs, job, 0.9),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert registry.versions() == []
    assert runs.queries.curve(job.id) == []
    assert runs.queries.checkpoints(job.id) == []
    runs.start(again, REQUEST)
    assert finish(runs, again, 0.9)[0] == 1


def test_the_alias_moves_only_to_what_is_better(store: JobStore, runs: TrainingStore, registry: ModelRegistry) -> None:
    verdicts = []
    for accuracy in (0.8, 0.7, 0.8, 0.9):
        job = claimed(store)
        runs.start(job, REQUEST)
        verdicts.append(finish(runs, job, accuracy))
    assert verdicts == [
        (1, True, "@champion is new: accuracy 0.8"),
        (2, False, "@champion stays at digits/1: accuracy 0.7 is not better than 0.8"),
        (3, False, "@champion stays at digits/1: accuracy 0.8 is not better than 0.8"),
        (
            4,
            True,
            "@champion moved from digits/1: accuracy 0.9 is better than 0.8, though their held-out rows may differ",
        ),
    ]
    assert registry.get("digits@champion").version == 4
    # What the transaction that registered it found, not what the alias named when the run ended.
    parents = [made.metadata.get("lineage", {}).get("parent") for made in registry.versions("digits")]
    assert parents == [None, "digits/1", "digits/1", "digits/1"]


def test_a_version_that_is_made_from_a_trained_one_knows_its_data(store: JobStore, runs: TrainingStore) -> None:
    job = claimed(store)
    runs.start(job, REQUEST)
    runs.set_data(job, DATA)
    model = version({}, job=job.id)
    for _ in range(2):  # one made from that, too
        model = replace(model, metadata=derived_metadata(model, claimed(store), "convert"))
        assert runs.queries.data_of(model) == DATA


def test_a_better_metric_of_other_held_out_rows_is_said_to_be_that(store: JobStore, runs: TrainingStore) -> None:
    told = []
    for accuracy, sha256 in ((0.7, "a"), (0.8, "a"), (0.9, "b")):
        job = claimed(store)
        runs.start(job, REQUEST)
        told.append(finish(runs, job, accuracy, sha256=sha256, rows={"test": 5}, seed=0)[2])
    assert told[1:] == [
        "@champion moved from digits/1: accuracy 0.8 is better than 0.7",
        "@champion moved from digits/2: accuracy 0.9 is better than 0.8, though their held-out rows may differ",
    ]


def test_the_alias_stays_where_callers_would_get_results_of_another_form(
    store: JobStore, runs: TrainingStore, registry: ModelRegistry
) -> None:
    chances = {"dtype": "float32", "shape": [2], "classes": ["no", "yes"]}
    several = Signature.parse(
        {"x": {"dtype": "float32", "shape": []}}, {"label": {"dtype": "str"}, "probabilities": chances}
    )
    bare = Signature.parse({"x": {"dtype": "float32", "shape": []}}, {"probabilities": chances})
    other = Signature.parse({"x": {"dtype": "float32", "shape": []}}, {"p": chances | {"classes": ["yes", "no"]}})
    named = Signature.parse({"x": {"dtype": "float32", "shape": []}}, {"p": chances})
    verdicts = []
    for accuracy, signature in ((0.5, several), (0.6, bare), (0.7, several), (0.8, Signature(several.inputs))):
        job = claimed(store)
        runs.start(job, REQUEST)
        verdicts.append(finish(runs, job, accuracy, signature)[1:])
    assert [moved for moved, _ in verdicts] == [True, False, True, True]
    assert "@champion stays at digits/1" in str(verdicts[1][1])
    assert "its outputs are float32 of shape [2]; classes ['no', 'yes'], not 'label': str; 'probabilities'" in str(
        verdicts[1][1]
    )
    assert bare.differences(named) == ""
    assert "classes ['yes', 'no'], not" in bare.differences(other)
    assert "its inputs are 'y', not 'x'" in bare.differences(Signature.parse({"y": {"dtype": "str"}}))


def test_an_alias_that_is_moved_by_hand_while_a_run_compares_itself_with_it_is_not_moved_back(
    store: JobStore, runs: TrainingStore, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for accuracy in (0.7, 0.99):
        registry.register(version({"accuracy": accuracy}))
    registry.set_alias("digits", "champion", 1)
    hand = Thread(target=registry.set_alias, args=("digits", "champion", 2))

    def beats(*values: Any) -> bool:  # what the alias names has been read
        hand.start()
        hand.join(0.3)
        return better(*values)

    monkeypatch.setattr("forebay.storage.training.store.better", beats)
    job = claimed(store)
    runs.start(job, REQUEST)
    assert finish(runs, job, 0.8)[1] is True
    hand.join()
    assert registry.get("digits@champion").version == 2


def test_the_alias_stays_at_a_version_of_which_nothing_is_known(
    store: JobStore, runs: TrainingStore, registry: ModelRegistry
) -> None:
    registry.register(replace(version({}), metadata={}))
    registry.set_alias("digits", "champion", 1)
    job = claimed(store)
    runs.start(job, REQUEST)
    assert finish(runs, job, 0.9) == (
        2, False, "@champion stays at digits/1, of which no accuracy is known; move it by hand: models alias",
    )  # fmt: skip


def test_evaluations_stay_with_their_version(store: JobStore, runs: TrainingStore, registry: ModelRegistry) -> None:
    registry.register(version({}))
    first, second = new_ids(2)
    store.add([NewJob(id, JobKind.EVALUATE, "digits", 1, "cpu") for id in (first, second)])
    told = Evaluation(first, "digits", 1, "test.parquet", "ab" * 32, 10, {"f1": 0.5}, [[1, 2], [3, 4]], ["a", "b"], 1.5)
    one, other = store.claim([first, second], "w@host", 30)
    assert runs.set_progress(one, 5, 10, "half") is False
    assert store.queries.get(first).progress == Progress(5, 10, "half")
    assert runs.finish_evaluation(one, told, b"1").id == first
    store.cancel([second])
    assert runs.set_progress(other, 5, 10, "half") is True
    runs.finish_evaluation(other, structs.replace(told, id=second, confusion=None, classes=None), b"2")
    newest, oldest = runs.queries.evaluations("digits", 1)
    assert (newest.id, newest.confusion, newest.classes) == (second, None, None)
    assert structs.replace(oldest, at=None) == told
    assert {outcome.kind for outcome in store.queries.outcomes([first, second])} == {JobKind.EVALUATE}
    registry.delete("digits/1")
    assert runs.queries.evaluations("digits", 1) == []


def test_an_evaluation_whose_lease_is_lost_leaves_nothing(
    store: JobStore, runs: TrainingStore, registry: ModelRegistry
) -> None:
    registry.register(version({}))
    [id] = new_ids(1)
    store.add([NewJob(id, JobKind.EVALUATE, "digits", 1, "cpu")])
    [job] = store.claim([id], "w@host", 30)
    store.free_crashed([id], "w@host", "gone")
    store.claim([id], "w2@host", 30)
    told = Evaluation(id, "digits", 1, "test.parquet", "ab" * 32, 10, {"f1": 0.5}, None, None, 1.5)
    for write in (lambda: runs.set_progress(job, 1, 2, ""), lambda: runs.finish_evaluation(job, told, b"")):
        with pytest.raises(LeaseLost):
            write()
    assert runs.queries.evaluations("digits", 1) == []
    assert store.queries.get(id).state is JobState.RUNNING
