"""A small run of the jobs that make, measure and watch versions: an explanation, an evaluation, a benchmark, a conversion, a
compression, a reference for drift, predictions and a batch that are counted for it, a standing training that the drift sets off;
a tune of which one trial is pruned, and one that is canceled and retried.

Models and handlers are the real ones, trainers are scripts.
"""

import json
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from forebay.contract.drift.sketch import Sketcher
from forebay.contract.job import JobKind, JobState, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.requests.request import encode
from forebay.contract.requests.training import TrainRequest
from forebay.contract.requests.tuning import TuneRequest
from forebay.producer.handles.job import Job
from forebay.storage.jobs.records import NewJob
from forebay.storage.models.benchmarks import BenchmarkStore
from forebay.storage.models.drift import HOURS, DriftStore
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.queries import TrainingQueries
from forebay.storage.training.standing import StandingTraining, StandingTrainings
from forebay.storage.tuning.queries import TuneQueries
from forebay.storage.tuning.records import PRUNED
from support.fault_proxy import never
from support.scripted_trainer import ScriptedTrainer
from support.small_run import DisturbedRun

ROWS = 200  # of the data set; a batch has them all once more, shifted
PREDICTED = 20
ACCURACIES = (0.5, 0.6, 0.9, 0.7, 0.1, 0.8)
STOPPED = (0.25, 0.75)


class Curve(torch.nn.Module):
    """A number in, a number out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(1, 256), torch.nn.Linear(256, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch,)
        return self.second(torch.relu(self.first(x.unsqueeze(1)))).squeeze(1)  # (batch,)


class ModelRun(DisturbedRun):
    """One such run."""

    commits_only = True

    def __init__(self, *given: Any) -> None:
        super().__init__(*given, launcher=self)
        self.grace_s = 1.0  # a launcher's
        self._stopped = False

    def start(self, job: Any, request: TrainRequest, folder: Path, rendezvous: Any) -> ScriptedTrainer:
        """A trainer; the first one of the tune that is to be canceled cancels it."""
        if request.params.get("accuracy") in STOPPED and not self._stopped:
            self._stopped = True
            self.insist(lambda: self.client.job(self.stopped).cancel(), self._look)
        return ScriptedTrainer(folder, request)

    def run(self) -> None:
        self._register()
        models, data = self.client.models, self.folder / "data.parquet"
        self.reference = self._submit(partial(models.reference, "net/1", data))
        self.worker.run_until(lambda: not self._open())  # before anything is counted
        self.made = {
            "convert": self._submit(partial(models.convert, "net/1", to="torch-export", rows=4, alias="program")),
            "compress": self._submit(partial(models.compress, "net/1", "bfloat16", alias="small")),
        }
        asked = {"max_rows": 2, "seconds": 1.0, "apply": True}
        self.benchmark = self._submit(partial(models.benchmark, "net/1", **asked))
        self.evaluation = self._submit(partial(self.client.evaluate, "net/1", data, target="y", columns={"x": "x"}))
        self.explained = [self._submit(partial(self.client.explain, "net/1", {"x": x})) for x in (0.5, 1.5)]
        inputs = [{"x": float(x)} for x in self.shifted[:PREDICTED]]
        self.predicted = self.insist(lambda: self.client.predict_many("net/1", inputs), self._look)
        batch = partial(self.client.batch, "net/1", self.folder / "shifted.npy", self.folder / "out", columns="array")
        self.batch = self._submit(batch)
        self.tune, self.stopped = self._add_tune("tuned", ACCURACIES), self._add_tune("stopped", STOPPED)
        self.worker.run_until(lambda: not self._open() and bool(self._standing().problem))
        (self.folder / "away").rename(self.folder / "more")
        self.worker.run_until(lambda: bool(self._standing().triggers))
        self.worker.run_until(lambda: not self._open())
        assert self._state(self.stopped) is JobState.CANCELED
        self.insist(lambda: self.client.job(self.stopped).retry(), self._look)
        self.worker.run_until(lambda: not self._open())
        self.faulty.lose(never)

    def _register(self) -> None:
        torch.manual_seed(0)
        self.net, draw = Curve(), np.random.default_rng(0)
        self.shifted = draw.normal(size=ROWS).astype(np.float32) + 3
        np.save(self.folder / "shifted.npy", self.shifted)
        x = draw.normal(size=ROWS).astype(np.float32)
        (self.folder / "more").mkdir()
        for path in (self.folder / "data.parquet", self.folder / "more" / "data.parquet"):
            pq.write_table(pa.table({"x": x, "y": 2 * x}), path)
        save_file(self.net.state_dict(), self.folder / "net.safetensors")
        field = {"dtype": "float32", "shape": []}
        register = partial(
            self.client.models.register, "net", self.folder / "net.safetensors", inputs={"x": field}, outputs={"y": field},
            options={"factory": "support.model_run:Curve"}, max_batch_size=64,
        )  # fmt: skip
        self.insist(register, self._look)
        self.insist(lambda: self.client.models.set_alias("net", "live", 1), lambda: None)
        stand = partial(
            self.client.retraining.add, "net", 0.2, recipe="regressor", dataset=self.folder / "more" / "*.parquet", target="y",
            alias="live",
        )  # fmt: skip
        self.insist(stand, self._look)
        other = self.insist(stand, self._look)
        self.insist(lambda: self.client.retraining.remove(other.id), self._look)
        (self.folder / "more").rename(self.folder / "away")

    def _submit(self, submit: Any) -> Any:
        return self.insist(submit, self._look)

    def _add_tune(self, name: str, accuracies: tuple[float, ...]) -> str:
        [id] = new_ids(1)
        train = TrainRequest("a:B", (), "parquet", metric="accuracy", alias="best")
        request = TuneRequest(train, {"accuracy": accuracies}, len(accuracies), "grid", "median")
        job = NewJob(id, JobKind.TUNE, name, 0, "train", max_attempts=9, input=encode(request))
        self.insist(lambda: self.client.session.jobs.add([job]), self._look)
        return id

    def _look(self) -> Any:
        """What a refused action must have left alone; jobs that come and go by themselves are none of it."""
        standing = [one.id for one in StandingTrainings(self.truth).all()]
        jobs = self.jobs.queries.find(limit=1000)
        asked = [job.id for job in jobs if job.parent_id is None and "drift" not in job.metadata]
        canceled = hasattr(self, "stopped") and self._state(self.stopped)
        return standing, asked, self._versions("net")[:1], canceled

    def _standing(self) -> StandingTraining:
        [one] = StandingTrainings(self.truth).all()
        return one

    def audit(self) -> None:
        found = self.jobs.queries.find(limit=1000)
        bad = [job for job in found if job.state not in (JobState.SUCCEEDED, JobState.CANCELED)]
        assert not bad, [(str(job.kind), str(job.state), job.error) for job in bad]
        self._audit_versions()
        self._audit_drift()
        self._audit_tune(self.tune, "tuned", ACCURACIES)
        self._audit_tune(self.stopped, "stopped", STOPPED)
        assert {id: n for id, n in self.audit_ends().items() if id == self.stopped} == {self.stopped: 1}

    def _audit_versions(self) -> None:
        registry = ModelRegistry(self.truth)
        versions = {model.version: model for model in registry.versions() if model.name == "net"}
        [trigger] = self._standing().triggers
        assert self._standing().problem == ""
        jobs = {name: job.id for name, job in self.made.items()} | {"": trigger.job}
        by_job: dict[str, ModelVersion] = {
            model.metadata["lineage"]["job"]: model for number, model in versions.items() if number != 1
        }
        assert sorted(versions) == [1, 2, 3, 4]
        assert set(by_job) == set(jobs.values()), "each has made one version"
        for name, alias in (("convert", "program"), ("compress", "small")):
            made = self.made[name].result(5)
            assert made == by_job[jobs[name]]
            assert made.aliases == (alias,)
            assert made.metadata["lineage"]["made_by"] == name
        assert (by_job[trigger.job].aliases, versions[1].aliases) == ((), ("live",)), "it has no r2 to be better by"
        assert trigger.version == 1
        [found] = BenchmarkStore(self.truth).of_version("net", 1)
        assert found.id == self.benchmark.id
        assert self.benchmark.result(5).curves == found.curves
        assert versions[1].max_batch_size == found.best
        [evaluation] = TrainingQueries(self.truth).evaluations("net", 1)
        assert (evaluation.id, evaluation.rows) == (self.evaluation.id, ROWS)
        assert [set(job.result(5)) for job in self.explained] == [set(self.explained[0].result(5))] * 2

    def _audit_drift(self) -> None:
        """Every row that was served is counted once, in the reference's cells."""
        store = DriftStore(self.truth)
        known = store.reference("net", 1)
        assert known is not None
        revision, reference = known
        assert self.reference.result(5)["rows"] == ROWS
        assert revision == 1
        parts = sorted((self.folder / "out").glob("part-*.parquet"))
        written = pa.concat_tables([pq.read_table(part) for part in parts]).sort_by("row").to_pydict()
        assert written["row"] == list(range(ROWS))
        with torch.no_grad():
            expected = self.net(torch.from_numpy(self.shifted)).numpy()
        predicted = [job.result(5) for job in self.predicted]
        np.testing.assert_allclose(predicted, expected[:PREDICTED], rtol=1e-4)
        np.testing.assert_allclose(written["y"], expected, rtol=1e-4)
        sketcher = Sketcher(reference, ModelRegistry(self.truth).get("net/1").signature)
        wanted = sketcher.zeros()
        for x, y in ((self.shifted[:PREDICTED], predicted), (self.shifted, written["y"])):
            sketcher.count("input", {"x": x}, wanted)
            sketcher.count("output", {"y": np.array(y, np.float32)}, wanted)
        hours = self.truth.rows(HOURS, name="net", version=1, revision=1, after=0)
        counted = sum((np.array(json.loads(row.counts)) for row in hours), sketcher.zeros())
        if self.commits_only:
            assert sum(row.rows for row in hours) == PREDICTED + ROWS
            np.testing.assert_array_equal(counted, wanted)
        assert (counted <= wanted).all(), "what is missing is a smaller sample, what is counted twice is wrong"

    def _audit_tune(self, id: str, name: str, accuracies: tuple[float, ...]) -> None:
        trials = TuneQueries(self.truth).trials(id)
        assert [trial.number for trial in trials] == list(range(len(accuracies)))
        values = [trial.params["accuracy"] for trial in trials]
        assert sorted(values) == sorted(accuracies), "each was tried once"
        for number, trial in enumerate(trials):
            behind = number >= 4 and values[number] < median(values[:number])
            assert trial.state == (PRUNED if behind else JobState.SUCCEEDED)
            assert behind or trial.value == values[number]
        assert self._versions(name) == [1], "registered once"
        version = ModelRegistry(self.truth).get(f"{name}@best")
        best = values.index(max(values))
        assert version.metadata["metrics"] == {"accuracy": max(values) - 0.01}
        assert version.metadata["lineage"]["tune"] == id
        told = Job(self.client.session, id).result(5)
        assert (told["version"], told["trial"]) == (1, best)
        self.client.session.blobs.get(version.artifact)


class UnreadableModelRun(ModelRun):
    """One of which reads fail, too: rows that are served meanwhile are not counted."""

    commits_only = False
