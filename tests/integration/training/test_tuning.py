"""What children make of a tune: its trials, whatever dies in between; pruned ones, failing ones; cancel, deadline and retry.

The trainer is a script in this process; the ledger, once of each kind, and the blobs are real.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from forebay.contract.errors import ForebayError, InvalidInput
from forebay.contract.job import JobInfo, JobKind, JobState, new_ids
from forebay.contract.requests.request import encode
from forebay.contract.requests.training import (
    ARTIFACT_FOLDER,
    VALIDATION,
    Event,
    Point,
    Trained,
    TrainRequest,
)
from forebay.contract.requests.tuning import Range, TuneRequest
from forebay.contract.settings import Settings
from forebay.contract.wire import codec
from forebay.storage.blobs.store import BlobStore
from forebay.storage.blobs.sweep import BlobSweep
from forebay.storage.jobs.records import NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.tuning.records import Trial
from forebay.storage.tuning.store import TuneStore
from forebay.worker.kinds.train import follow
from forebay.worker.kinds.train.handler import TrainHandler
from forebay.worker.kinds.tune.handler import TuneHandler
from support.child import attempts_of, child_context
from support.scripted_trainer import FIELD, STEPS, ScriptedTrainer

PASS = Statement("UPDATE jobs SET deadline_at = 1 WHERE id = ANY(:ids)")
MANY = {"accuracy": Range(0.0, 1.0)}


@dataclass
class Launcher:
    """Starts ScriptedTrainers, and counts them by what they were asked."""

    grace_s: float = 1.0
    started: list[Any] = field(default_factory=list)

    def start(self, job: Any, request: TrainRequest, folder: Path, rendezvous: Any) -> ScriptedTrainer:
        self.started.append(request.params["accuracy"])
        return ScriptedTrainer(folder, request)


class Killed(BaseException):
    """The process ends here."""


class Place:
    """One child that serves tunes and trials, of which the message is whatever waits in the ledger."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self.ledger, self.settings = ledger, settings
        self.jobs, self.tunes, self.registry = JobStore(ledger), TuneStore(ledger), ModelRegistry(ledger)
        self.blobs, self.launcher = BlobStore(settings.blobs), Launcher()
        self.restart()

    def restart(self) -> None:
        """A new process in the place of one that has died."""
        context = child_context(self.settings, self.ledger, self.blobs)
        train = TrainHandler(context, self.launcher)  # type: ignore[arg-type]
        self.handlers = {JobKind.TUNE: TuneHandler(context), JobKind.TRAIN: train}
        self.attempts = attempts_of(context)

    def tune(self, space: Any = MANY, deadline_s: float | None = None, alias: str | None = None, **more: Any) -> str:
        [id] = new_ids(1)
        params = more.pop("params", {})
        train = TrainRequest("a:B", (), "parquet", params=params, metric="accuracy", alias=alias)
        request = TuneRequest(train, space, **more)
        deadline = None if deadline_s is None else self.ledger.now() + deadline_s
        job = NewJob(
            id, JobKind.TUNE, "digits", 0, "train", max_attempts=3, input=encode(request), deadline_at=deadline
        )
        self.jobs.add([job])
        return id

    def waiting(self) -> list[str]:
        return [info.id for info in reversed(self.jobs.queries.find(state=[JobState.QUEUED]))]

    def step(self) -> bool:
        """Run the oldest job that waits, as its message would have it; False when none does."""
        claimed = self.jobs.claim(self.waiting()[:1], self.settings.claimant, 60)
        for job in claimed:
            self.handlers[job.kind].run([job], self.attempts)  # type: ignore[attr-defined]
        return bool(claimed)

    def run(self, id: str) -> JobInfo:
        """Until the tune has ended, with a sweep where nothing waits."""
        for _ in range(200):
            if self.jobs.queries.get(id).state.final:
                break
            if not self.step():
                self.sweep()
        return self.jobs.queries.get(id)

    def sweep(self) -> None:
        self.jobs.sweeps.expire()
        self.tunes.parents.requeue_stalled(-1)

    def die(self) -> None:
        """What the parent does about a child that was killed."""
        running = [info.id for info in self.jobs.queries.find(state=[JobState.RUNNING])]
        self.jobs.free_crashed(running, self.settings.claimant, "signal 9")
        self.restart()

    def trials(self, id: str) -> list[Trial]:
        return self.tunes.queries.trials(id)

    def states(self, id: str) -> Counter[str]:
        return Counter(str(trial.state) for trial in self.trials(id))

    def result(self, id: str) -> dict[str, Any]:
        [outcome] = self.jobs.queries.outcomes([id])
        made: dict[str, Any] = codec.decode(outcome.result or b"")
        return made

    def stored(self) -> int:
        """How many artifacts somebody refers to."""
        refs = [file.ref for folder in range(256) for file in self.blobs.stored(f"{folder:02x}")]
        return len(BlobSweep(self.ledger, self.blobs, 0).used(refs))


@pytest.fixture
def place(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(follow, "TICK_S", 0.0)
    given = {"BROKER": "redis://127.0.0.1:1/0", "HOME": str(tmp_path / "home"), "BLOBS": str(tmp_path / "blobs")}
    return Place(ledger, Settings.load({f"FOREBAY_{name}": value for name, value in given.items()}))


def test_the_best_of_all_trials_becomes_the_only_version_and_moves_the_alias(place: Place) -> None:
    id = place.tune(trials=6, alias="champion")
    info = place.run(id)
    assert (info.state, info.progress.done, info.progress.total) == (JobState.SUCCEEDED, 6, 6)
    trials = place.trials(id)
    assert [trial.number for trial in trials] == list(range(6))
    assert {place.jobs.queries.get(trial.job).parent_id for trial in trials} == {id}
    assert [trial.value for trial in trials] == [trial.params["accuracy"] for trial in trials]
    best = max(trials, key=lambda trial: trial.value or 0.0)
    [version] = place.registry.versions("digits")
    assert version.aliases == ("champion",)
    assert version.metadata["metrics"] == {"accuracy": pytest.approx(best.params["accuracy"] - 0.01)}
    lineage = version.metadata["lineage"]
    assert (lineage["job"], lineage["tune"], lineage["params"]["accuracy"]) == (best.job, id, best.params["accuracy"])
    told = place.result(id)
    assert (told["version"], told["trial"], told["promoted"]) == (1, best.number, True)
    assert place.stored() == 1, "the version's artifact, and of no other trial"


def test_a_recipe_that_keeps_its_last_state_is_worth_what_that_is_worth(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial with the better best value ends with the worse one."""
    ends = {0.6: [0.9, 0.6], 0.7: [0.8, 0.7]}

    def events(_: ScriptedTrainer, folder: Path, request: TrainRequest) -> Iterator[Event]:
        accuracy = request.params["c"]
        yield from (Point(i + 1, 0, VALIDATION, {"accuracy": v}, steps=2) for i, v in enumerate(ends[accuracy]))
        (folder / ARTIFACT_FOLDER).mkdir()
        (folder / ARTIFACT_FOLDER / "graph").write_text(str(accuracy))
        yield Trained({"accuracy": accuracy}, "onnx", FIELD, FIELD, steps=2)

    monkeypatch.setattr(ScriptedTrainer, "_events", events)
    monkeypatch.setattr(Launcher, "start", lambda _, job, request, folder, __: ScriptedTrainer(folder, request))
    train = TrainRequest("svm", (), "parquet", metric="accuracy")
    [id] = new_ids(1)
    request = TuneRequest(train, {"c": tuple(ends)}, sampler="grid")
    place.jobs.add([NewJob(id, JobKind.TUNE, "digits", 0, "train", input=encode(request))])
    assert place.run(id).state is JobState.SUCCEEDED
    assert {trial.params["c"]: trial.value for trial in place.trials(id)} == {0.6: 0.6, 0.7: 0.7}
    assert place.result(id)["metrics"] == {"accuracy": 0.7}


def test_a_tune_that_is_no_better_than_the_champion_leaves_the_alias_where_it_is(place: Place) -> None:
    assert place.run(place.tune({"accuracy": (0.9,)}, alias="champion")).state is JobState.SUCCEEDED
    id = place.tune({"accuracy": (0.5, 0.7)}, alias="champion")
    assert place.run(id).state is JobState.SUCCEEDED
    assert place.registry.get("digits@champion").version == 1
    assert place.registry.get("digits/2").metadata["lineage"]["parent"] == "digits/1"
    assert place.result(id)["promoted"] is False


@pytest.mark.parametrize("at", ["claimed", "added", "trained", "ended", "registered"])
def test_whatever_dies_in_between_no_trial_is_run_twice_and_none_is_missing(
    place: Place, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = place.tune(trials=5, sampler="random", parallel=2)
    step, after = {
        "claimed": ("start", False), "added": ("add_trial", True), "trained": ("finish_trial", True),
        "ended": ("add_trial", False), "registered": ("complete", False),
    }[at]  # fmt: skip
    real, times = getattr(TuneStore, step), iter(range(100))

    def dies(self: Any, *given: Any) -> Any:
        made = real(self, *given) if after else None
        if next(times) in (0, 3):
            raise Killed
        return made if after else real(self, *given)

    monkeypatch.setattr(TuneStore, step, dies)
    deaths = 0
    while not place.jobs.queries.get(id).state.final:
        try:
            place.run(id)
        except Killed:
            deaths += 1
            place.die()
    assert deaths == (1 if step in ("start", "complete") else 2)
    assert place.jobs.queries.get(id).state is JobState.SUCCEEDED
    trials = place.trials(id)
    assert [trial.number for trial in trials] == list(range(5))
    assert place.states(id) == {"succeeded": 5}
    assert sorted(place.launcher.started) == sorted(trial.params["accuracy"] for trial in trials), "each ran once"
    assert len(place.registry.versions("digits")) == 1


def test_of_two_that_add_the_same_trial_one_is_heard(place: Place) -> None:
    id = place.tune()
    [job] = place.jobs.claim([id], "w", 60)
    place.tunes.start(job)
    tune, made = place.tunes.queries.get(id), list[Any]()
    payload = (encode(TrainRequest("a:B", (), "parquet")), None)
    threads = [
        threading.Thread(target=lambda: made.append(place.tunes.add_trial(tune, 0, {"accuracy": 0.1}, payload)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(routed is not None for routed in made) == 1
    assert [trial.number for trial in place.trials(id)] == [0]


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_trials_that_fall_behind_are_pruned_and_cost_less_than_half(place: Place, pruner: str) -> None:
    id = place.tune(trials=16, sampler="random", pruner=pruner)
    assert place.run(id).state is JobState.SUCCEEDED
    trials = place.trials(id)
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert len(pruned) >= 4
    assert {trial.state for trial in trials} == {"pruned", "succeeded"}
    assert all(trial.steps <= STEPS / 2 and trial.planned == STEPS for trial in pruned)
    assert max(trials, key=lambda trial: trial.params["accuracy"]).state == "succeeded"
    assert place.jobs.queries.get(pruned[0].job).state is JobState.CANCELED
    assert place.result(id)["trials"] == f"{16 - len(pruned)} succeeded, {len(pruned)} pruned"


def test_trials_that_fail_are_counted_and_the_others_go_on(place: Place) -> None:
    id = place.tune({"accuracy": (0.2, 0.4, 0.6, 0.8)}, sampler="grid", params={"refused": [0.8, 0.2]})
    assert place.run(id).state is JobState.SUCCEEDED
    assert place.states(id) == {"succeeded": 2, "failed": 2}
    assert place.result(id)["metrics"] == {"accuracy": pytest.approx(0.59)}
    assert {trial.error.line for trial in place.trials(id) if trial.error} == {
        "InvalidInput: accuracy 0.8 cannot be had", "InvalidInput: accuracy 0.2 cannot be had"
    }  # fmt: skip


def test_a_tune_whose_trials_all_fail_ends_early_with_the_first_reason(place: Place) -> None:
    values = tuple(i / 10 for i in range(10))
    id = place.tune({"accuracy": values}, sampler="grid", trials=10, params={"refused": list(values)})
    info = place.run(id)
    assert info.state is JobState.FAILED
    assert place.states(id) == {"failed": 5}
    assert info.error is not None
    first = place.trials(id)[0].error
    assert first is not None
    assert info.error.type == "InvalidInput"
    assert info.error.message == f"no trial has succeeded (5 failed); trial 0: {first.message}"
    assert place.jobs.queries.find(model="digits", state=[JobState.QUEUED]) == []


def test_a_cancel_reaches_the_trials_and_a_retry_does_what_is_missing(place: Place) -> None:
    id = place.tune(trials=6, parallel=2, sampler="random")
    for _ in range(4):
        place.step()
    place.jobs.cancel([id])
    assert place.states(id) == {"succeeded": 3, "canceled": 2}
    assert place.waiting() == []
    place.jobs.retry(id)
    assert place.run(id).state is JobState.SUCCEEDED
    assert place.states(id) == {"succeeded": 6}
    assert len(place.launcher.started) == len(set(place.launcher.started)) == 6


def test_pruned_trials_stay_pruned_when_the_tune_is_retried(place: Place) -> None:
    id = place.tune(trials=12, sampler="random", pruner="median")
    while "pruned" not in place.states(id):
        assert place.step()
    [pruned] = [trial for trial in place.trials(id) if trial.state == "pruned"]
    place.jobs.cancel([id])
    place.jobs.retry(id)
    assert place.run(id).state is JobState.SUCCEEDED
    assert place.trials(id)[pruned.number] == pruned


def test_after_the_deadline_no_trial_begins_and_the_best_so_far_becomes_the_version(place: Place) -> None:
    id = place.tune(trials=6, deadline_s=1000)
    for _ in range(3):
        place.step()
    [waiting] = place.waiting()
    assert place.jobs.queries.get(waiting).deadline_at is not None
    with place.ledger.write() as connection:
        PASS.execute(connection, ids=[id, waiting])
    info = place.run(id)
    assert (info.state, place.states(id)) == (JobState.SUCCEEDED, {"succeeded": 2, "expired": 1})


def test_a_trial_that_measures_nothing_fails_and_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    id = place.tune({"accuracy": (0.5,)})
    real = ScriptedTrainer._events
    monkeypatch.setattr(
        ScriptedTrainer, "_events",
        lambda self, folder, request: (e for e in real(self, folder, request) if not isinstance(e, Point)),
    )  # fmt: skip
    info = place.run(id)
    assert info.error is not None
    assert (info.state, info.error.type) == (JobState.FAILED, "NotMeasured")


def test_values_that_do_not_go_together_fail_the_tune_with_its_trials(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, times = TuneRequest.trial, iter(range(9))

    def refuses(self: TuneRequest, params: Any) -> TrainRequest:
        if next(times) == 2:
            raise InvalidInput("rounds and stop do not go together")
        return real(self, params)

    monkeypatch.setattr(TuneRequest, "trial", refuses)
    id = place.tune(parallel=2)
    info = place.run(id)
    assert info.error is not None
    assert (info.state, info.error.type) == (JobState.FAILED, "InvalidInput")
    assert "rounds and stop do not go together" in info.error.message
    assert place.waiting() == []


def test_a_best_trial_that_cannot_be_registered_fails_the_tune(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise ForebayError("the base has been deleted")

    monkeypatch.setattr(TuneStore, "complete", refuse)
    info = place.run(place.tune({"accuracy": (0.5,)}))
    assert info.state is JobState.FAILED
    assert info.error is not None
    assert "trial 0 cannot be registered: the base has been deleted" in info.error.message
