"""Trainings that drift sets off: once for each version that drifts, by whichever of several sweeps comes first."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forebay.contract.drift.sketch import Reference, ReferenceBuilder, Served, Sketcher
from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind, JobState
from forebay.contract.model import ModelVersion
from forebay.contract.requests.request import decode
from forebay.contract.requests.training import TrainRequest
from forebay.contract.settings import Settings
from forebay.contract.signature import Field, Signature
from forebay.producer.retraining import Retraining
from forebay.storage.jobs.store import JobStore
from forebay.storage.jobs.views import JobViews
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.drift import DriftStore
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.standing import StandingTraining, StandingTrainings
from forebay.worker.parent.drift_sweep import DriftSweep

SIGNATURE = Signature((Field("x", "float32"), Field("z", "float32")))


class Session:
    """What Retraining takes of a session: a ledger, the models in it, and the settings."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self.ledger, self.settings, self.registry = ledger, settings, ModelRegistry(ledger)


class Bench:
    """A model of which version 1 is the champion, and a folder of data that grows."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        settings = Settings.load(home=folder, database=ledger.url, broker="redis://localhost:1")
        self.ledger, self.folder, self.models = ledger, folder / "data", ModelRegistry(ledger)
        self.drift, self.jobs, self.settings = DriftStore(ledger), JobStore(ledger), settings
        self.folder.mkdir()
        self.more_data()
        self.retraining = Retraining(Session(ledger, settings))  # type: ignore[arg-type]
        self.add_version()
        self.models.set_alias("m", "champion", 1)

    def more_data(self) -> None:
        number = len(list(self.folder.iterdir()))
        (self.folder / f"{number}.csv").write_text("x,z,y\n" + "1,2,3\n4,5,6\n" * 20)

    def add_version(self) -> ModelVersion:
        made = self.models.register(ModelVersion("m", 0, "python", "", "none", 0, SIGNATURE))
        builder = ReferenceBuilder("input", SIGNATURE.inputs)
        builder.add(self.rows(0))
        self.drift.set_reference("m", made.version, Reference(tuple(builder.columns()), "a test"))
        return made

    def rows(self, seed: int, shift: float = 0.0) -> dict[str, Any]:
        draw = np.random.default_rng(seed)
        return {"x": draw.normal(size=1000) + shift, "z": draw.normal(size=1000)}

    def serve(self, version: int, shift: float) -> None:
        found = self.drift.reference("m", version)
        assert found is not None
        sketcher = Sketcher(found[1], SIGNATURE)
        counts = sketcher.zeros()
        sketcher.count("input", self.rows(1, shift), counts)
        self.drift.add([Served("m", version, found[0], self.drift.now_hour(), 1000, counts)])

    def stand(self, when_drift: float = 0.2, **more: Any) -> StandingTraining:
        asked: dict[str, Any] = {
            "recipe": "regressor",
            "dataset": self.folder,
            "target": "y",
            "alias": "champion",
        } | more
        return self.retraining.add("m", when_drift, **asked)

    def sweep(self) -> list[str]:
        return DriftSweep(self.ledger, self.settings).sweep()

    @property
    def one(self) -> StandingTraining:
        [standing] = self.retraining.list("m")
        return standing


@pytest.fixture
def bench(ledger: Ledger, tmp_path: Path) -> Bench:
    return Bench(ledger, tmp_path)


def test_a_version_that_drifts_is_trained_anew_once_on_the_data_there_is_then(bench: Bench) -> None:
    standing = bench.stand(metadata={"team": "sea"}, priority=3)
    bench.serve(1, 0.0)
    assert bench.sweep() == []
    bench.more_data()
    bench.serve(1, 1.0)
    [id] = bench.sweep()
    assert bench.sweep() == []
    info = bench.jobs.queries.get(id)
    assert (info.kind, info.state, info.model, info.priority) == (JobKind.TRAIN, JobState.QUEUED, "m", 3)
    assert info.metadata["team"] == "sea"
    assert "m/1 drifted: input x has a PSI of" in info.metadata["drift"]
    payload = JobViews(bench.ledger).details(id, 1 << 20).input
    assert payload is not None
    request = decode(payload, TrainRequest)
    assert [Path(file.path).name for file in request.files] == ["0.csv", "1.csv"]
    assert (request.alias, request.target) == ("champion", "y")
    assert [(t.version, t.job) for t in bench.one.triggers] == [(1, id)]
    assert bench.one.id == standing.id


def test_a_sweep_sends_what_was_set_off(bench: Bench) -> None:
    bench.stand()
    bench.serve(1, 1.0)
    [id] = bench.sweep()
    [queue] = bench.jobs.queries.queues_with_unsent(5.0)
    assert [job.id for job in bench.jobs.sweeps.take_unsent(queue, 5.0)] == [id]


def test_of_many_sweeps_at_once_one_sets_it_off(bench: Bench) -> None:
    bench.stand()
    bench.serve(1, 1.0)
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.extend(bench.sweep())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(bench.jobs.queries.find(limit=10)) == 1


def test_the_version_that_the_alias_names_counts_and_each_is_a_reason_of_its_own(bench: Bench) -> None:
    bench.stand()
    bench.serve(1, 1.0)
    assert len(bench.sweep()) == 1
    second = bench.add_version().version
    bench.serve(second, 1.0)
    assert bench.sweep() == []
    bench.models.set_alias("m", "champion", second)
    assert len(bench.sweep()) == 1
    bench.models.set_alias("m", "champion", 1)
    assert bench.sweep() == []


def test_data_that_is_away_is_told_and_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.stand()
    bench.serve(1, 1.0)
    kept = bench.folder.rename(bench.folder.with_name("away"))
    assert bench.sweep() == []
    assert "m/1 drifted" in bench.one.problem
    assert "data" in bench.one.problem
    kept.rename(bench.folder)
    monkeypatch.delattr(StandingTrainings, "set_problem")  # it goes with the training's own commit, or it might stay
    assert len(bench.sweep()) == 1
    assert bench.one.problem == ""


def test_what_was_removed_sets_nothing_off(bench: Bench, ledger: Ledger) -> None:
    standing = bench.stand()
    bench.serve(1, 1.0)
    bench.retraining.remove(standing.id)
    assert (bench.sweep(), bench.retraining.list()) == ([], [])
    with pytest.raises(InvalidInput, match="no standing training"):
        StandingTrainings(ledger).remove(standing.id)


def test_a_larger_threshold_waits_for_more(bench: Bench) -> None:
    bench.stand(when_drift=5.0)
    bench.serve(1, 1.0)
    assert bench.sweep() == []


@pytest.mark.parametrize(
    "asked", [{"when_drift": 0}, {"when_drift": float("nan")}, {"deadline": 60}, {"idempotency_key": "k"}]
)
def test_what_cannot_stand_is_refused(bench: Bench, asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        bench.stand(**asked)
    assert bench.retraining.list() == []
