"""What a child makes of a training job: a run that goes well, and trainers that crash, hang, refuse, or must stop.

The trainer is a stand-in, once under real torchrun; the ledger, once of each kind, and the blobs are real.
"""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from forebay.contract.errors import BlobStoreFull
from forebay.contract.job import JobInfo, JobKind, JobState, new_ids
from forebay.contract.requests.request import encode
from forebay.contract.requests.training import Point, Saved, TrainRequest
from forebay.contract.settings import Settings
from forebay.contract.wire import codec
from forebay.storage.blobs.folders import unpack_folder
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.records import ClaimedJob, NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.store import TrainingStore
from forebay.worker.kinds.train.handler import TrainHandler
from forebay.worker.kinds.train.launch import Launcher
from forebay.worker.kinds.train.record import TAKEN, RunRecorder
from forebay.worker.kinds.train.register import PACKED
from forebay.worker.shared_page import SharedPage
from support.child import attempts_of, child_context, fate
from support.waiting import wait_until

WORKER = "w@test"
SUM = 55.0  # of the steps 1 to 10


@dataclass
class Place:
    """A handler with all that it works on."""

    folder: Path
    ledger: Ledger
    settings: Settings
    blobs: BlobStore
    page: SharedPage

    def __post_init__(self) -> None:
        self.jobs, self.store = JobStore(self.ledger), TrainingStore(self.ledger)
        self.registry = ModelRegistry(self.ledger)
        self.launcher = Launcher(self.settings, "support.fake_trainer")
        self.context = child_context(self.settings, self.ledger, self.blobs, self.page)
        self.handler = TrainHandler(self.context, self.launcher)
        self.attempts = attempts_of(self.context)

    def job(
        self, max_attempts: int = 3, alias: str | None = None, every: int = 4, nproc: int = 1, **params: Any
    ) -> str:
        """A waiting job of ten steps."""
        [id] = new_ids(1)
        request = TrainRequest(
            "stand-in", (), "parquet", params={"steps": 10} | params, metric="accuracy", alias=alias, nproc=nproc,
            checkpoint_steps=every, checkpoint_minutes=None, checkpoint_keep=2, metadata={"team": "a"},
        )  # fmt: skip
        self.jobs.add(
            [NewJob(id, JobKind.TRAIN, "digits", 0, "train", max_attempts=max_attempts, input=encode(request))]
        )
        return id

    def claim(self, id: str, worker: str = WORKER) -> ClaimedJob:
        [claimed] = self.jobs.claim([id], worker, 60)
        return claimed

    def run(self, id: str) -> tuple[str, JobInfo]:
        """What became of the job's next attempt, and its row."""
        return self.run_claimed(self.claim(id)), self.jobs.queries.get(id)

    def run_claimed(self, job: ClaimedJob) -> str:
        self.handler.run([job], self.attempts)
        return fate(self.attempts.take_summary())

    @contextmanager
    def running(self, id: str) -> Iterator[list[str]]:
        """The same beside the block; the list holds what became of it, once the block has ended and it is over."""
        became: list[str] = []
        claimed = self.claim(id)
        thread = threading.Thread(target=lambda: became.append(self.run_claimed(claimed)))
        thread.start()
        try:
            wait_until(lambda: self.store.queries.curve(id), "the trainer has begun")
            yield became
        finally:
            thread.join(120)

    def result(self, id: str) -> dict[str, Any]:
        [outcome] = self.jobs.queries.outcomes([id])
        made: dict[str, Any] = codec.decode(outcome.result or b"")
        return made

    def trainers(self) -> list[psutil.Process]:
        """Processes that work in this place's folders."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self.folder) in word for word in process.info["cmdline"] or []):
                found.append(process)
        return found


@pytest.fixture
def place(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    tests = str(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))
    given = {
        "BROKER": "redis://127.0.0.1:1/0", "HOME": str(tmp_path / "home"), "BLOBS": str(tmp_path / "blobs"),
        "WORKER_NAME": WORKER, "TRAIN_TIMEOUT_S": "100", "SHUTDOWN_GRACE_S": "20", "TORCH_THREADS": "1",
    }  # fmt: skip
    settings = Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})
    place = Place(tmp_path, ledger, settings, BlobStore(settings.blobs), SharedPage())
    yield place
    assert place.trainers() == []
    assert not list((tmp_path / "home").glob("training/*"))


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_trainer_that_does_not_know_its_arguments_is_no_crash_to_be_tried_again(place: Place, nproc: int) -> None:
    what, info = place.run(place.job(max_attempts=10, nproc=nproc, usage=3))
    assert (what, info.state, info.attempt) == ("failed", JobState.FAILED, 1)
    assert info.error is not None
    assert info.error.type == "TrainerUsage"
    assert "exit status 2" in info.error.message
    assert "unrecognized arguments: --no-such-option" in info.error.message


def test_a_run_is_recorded_registered_and_told(place: Place) -> None:
    id = place.job(alias="champion")
    what, info = place.run(id)
    assert (what, info.state, info.progress.done, info.progress.total) == ("succeeded", JobState.SUCCEEDED, 10, 10)
    told = place.result(id)
    assert told["model"] == "digits"
    assert told["version"] == 1
    assert told["metrics"] == {"loss": SUM, "accuracy": 0.5}
    assert told["promoted"] is True
    version = place.registry.get("digits@champion")
    assert (version.version, version.runtime, version.max_batch_size) == (1, "recipe", 256)
    assert version.options == {"recipe": "stand-in"}
    assert version.metadata["team"] == "a"
    lineage = version.metadata["lineage"]
    assert (lineage["job"], lineage["sha256"], lineage["parent"]) == (id, "ab" * 32, None)
    archive = place.blobs.fetch(version.artifact, place.folder / "artifact.tar")
    assert (unpack_folder(archive, place.folder / "artifact") / "sum.json").read_text() == "55"
    run = place.store.queries.run(id)
    assert (run.resumed, run.version, run.promoted, run.steps) == (0, 1, True, 10)
    assert run.data is not None
    assert run.data.classes == ("no", "yes")
    curve = place.store.queries.curve(id)
    assert [point.values for point in curve if point.split == "test"] == [{"loss": SUM, "accuracy": 0.5}]
    assert curve[-1].split == "train"


def test_a_second_run_names_the_champion_it_was_held_against(place: Place) -> None:
    assert place.run(place.job(alias="champion", accuracy=0.9))[0] == "succeeded"
    id = place.job(alias="champion", accuracy=0.8)
    assert place.run(id)[0] == "succeeded"
    assert place.registry.get("digits@champion").version == 1
    assert place.registry.get("digits/2").metadata["lineage"]["parent"] == "digits/1"
    assert place.result(id)["promoted"] is False


@pytest.mark.parametrize(("how", "words"), [("exit", "exit status 7"), ("kill", "signal 9 (SIGKILL)")])
def test_a_crash_counts_an_attempt_and_the_next_goes_on_from_the_last_checkpoint(
    place: Place, how: str, words: str
) -> None:
    id = place.job(**{how: 6, "once": True, "step_s": 0.1})
    what, info = place.run(id)
    assert (what, info.state) == ("released", JobState.QUEUED)
    assert f"attempt 1 of 3: the trainer ended: {words}" in info.progress.message
    [checkpoint] = place.store.queries.checkpoints(id)
    assert checkpoint.step == 4
    what, info = place.run(id)
    assert (what, info.state, info.attempt) == ("succeeded", JobState.SUCCEEDED, 2)
    assert place.result(id)["metrics"]["loss"] == SUM
    assert place.store.queries.run(id).resumed == 1


def test_an_attempt_without_a_usable_checkpoint_begins_anew_and_keeps_its_own(place: Place) -> None:
    id = place.job(step_s=0.1)
    claimed = place.claim(id)
    (place.folder / "blobs").mkdir(exist_ok=True)  # there are none in it
    for step in (900, 1000):  # of whatever the run was before
        place.store.add_checkpoint(claimed, step, 9, f"sha256:{step:064x}", 5, keep=4)
    place.store.add_metrics(claimed, [Point(1000, 9, "train", {"loss": 1.0})], "")
    assert place.run_claimed(claimed) == "succeeded"
    assert place.store.queries.run(id).resumed == 0, "it went on from nothing"
    assert max(checkpoint.step for checkpoint in place.store.queries.checkpoints(id)) <= 10
    assert max(measured.step for measured in place.store.queries.curve(id)) == 10


def test_at_max_attempts_a_crash_fails_the_job_with_its_last_words(place: Place) -> None:
    id = place.job(max_attempts=1, exit=2)
    what, info = place.run(id)
    assert (what, info.state) == ("failed", JobState.FAILED)
    assert info.error is not None
    assert info.error.type == "WorkerLost"
    assert "and so it ends" in info.error.message
    assert "redis://user:***@host/0 is full" in info.error.message


def test_what_the_trainer_refuses_fails_for_good(place: Place) -> None:
    what, info = place.run(place.job(refused=1))
    assert (what, info.state, info.attempt) == ("failed", JobState.FAILED, 1)
    assert info.error is not None
    assert (info.error.type, info.error.message) == ("InvalidInput", "column 'label' has one class only")


def test_a_trainer_that_says_nothing_for_too_long_is_killed(place: Place) -> None:
    place = replace(place, settings=replace(place.settings, train_timeout_s=4.0))
    id = place.job(hang=3, once=True, every=2)
    what, info = place.run(id)
    assert (what, info.state) == ("released", JobState.QUEUED)
    assert "nothing heard for train_timeout_s of 4 s" in info.progress.message
    assert place.run(id)[0] == "succeeded"
    assert place.result(id)["metrics"]["loss"] == SUM


def test_a_worker_that_stops_gives_the_job_back_uncounted_with_a_checkpoint_of_that_moment(place: Place) -> None:
    id = place.job(every=1000, step_s=0.5)
    with place.running(id) as became:
        place.page.stop()
    info = place.jobs.queries.get(id)
    assert (became, info.state, info.attempt) == (["released"], JobState.QUEUED, 0)
    assert len(place.store.queries.checkpoints(id)) == 1


def test_a_worker_that_stops_waits_for_no_room_for_an_artifact(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    full: list[Path] = []

    def put_file(path: Path) -> str:
        full.append(path)
        raise BlobStoreFull("no room")

    with monkeypatch.context() as patch:
        patch.setattr(place.blobs, "put_file", put_file)
        id = place.job(every=100)
        with place.running(id) as became:
            wait_until(lambda: any(path.name == PACKED for path in full), "the artifact finds no room")
            assert place.jobs.queries.get(id).state is JobState.RUNNING
            place.page.stop()
    assert became == ["released"]
    info = place.jobs.queries.get(id)
    assert (info.state, info.attempt) == (JobState.QUEUED, 0)


def test_a_trainer_that_does_not_heed_a_stop_is_killed_and_the_job_goes_back_uncounted(
    place: Place,
) -> None:
    place.launcher.grace_s = 1.0
    id = place.job(every=1000, step_s=0.5, deaf=True)
    with place.running(id) as became:
        place.page.stop()
    info = place.jobs.queries.get(id)
    assert (became, info.state, info.attempt) == (["released"], JobState.QUEUED, 0)


def test_a_user_cancels_a_run(place: Place) -> None:
    id = place.job(step_s=1.0)
    with place.running(id) as became:
        place.jobs.cancel([id])
    assert became == ["stopped"]
    assert place.jobs.queries.get(id).state is JobState.CANCELED
    assert place.registry.versions() == []


def test_who_has_lost_the_lease_ends_its_trainer_and_writes_nothing(place: Place) -> None:
    id = place.job(every=2, step_s=0.2)
    with place.running(id) as became:
        place.jobs.release([id], WORKER)
        other = place.claim(id, "other@test")
        place.page.doubt()
    assert became == ["lost"]
    assert place.jobs.queries.attempts([id]) == {id: other.attempt}
    assert place.registry.versions() == []
    assert [past.ended for past in place.jobs.queries.past_attempts(id)] == ["released", "refused"]


def test_a_checkpoint_that_is_gone_from_the_store_costs_the_one_before_it(place: Place) -> None:
    id = place.job(exit=6, once=True, every=2, step_s=0.2)
    assert place.run(id)[0] == "released"
    newest, older = place.store.queries.checkpoints(id)
    place.blobs.drop([newest.blob], lambda _: [])
    assert (newest.step, older.step) == (4, 2)
    assert place.run(id)[0] == "succeeded"
    assert place.result(id)["metrics"]["loss"] == SUM


def test_two_runs_with_the_same_checkpoint_keep_it_for_each_other(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = TrainRequest("stand-in", (), "parquet", checkpoint_keep=1)

    def save(job: ClaimedJob, step: int, content: str) -> None:
        folder = tmp_path / f"{job.id}-{step}"
        folder.mkdir()
        (folder / TAKEN).write_text(content)
        with closing(RunRecorder(place.store, place.blobs, job, request, folder)) as recorder:
            recorder._save(Saved(step, 1, "a file of the trainer's"))

    one, other = place.claim(place.job()), place.claim(place.job())
    save(one, 1, "the same")
    add = place.store.add_checkpoint

    def add_and_meet(job: ClaimedJob, *about: Any) -> list[str]:
        dropped = add(job, *about)
        monkeypatch.undo()
        save(other, 1, "the same")  # between what the first has dropped and what it removes
        return dropped

    monkeypatch.setattr(place.store, "add_checkpoint", add_and_meet)
    save(one, 2, "its next")
    for job, content in ((one, b"its next"), (other, b"the same")):
        [checkpoint] = place.store.queries.checkpoints(job.id)
        assert place.blobs.get(checkpoint.blob) == content
    save(other, 2, "its next as well")
    assert not place.blobs.has(f"sha256:{hashlib.sha256(b'the same').hexdigest()}"), "nobody needs it any more"


def test_several_processes_are_one_run(place: Place) -> None:
    id = place.job(nproc=2)
    assert place.run(id)[0] == "succeeded"
    assert place.result(id)["metrics"]["loss"] == SUM


def test_a_payload_that_is_no_request_fails_the_job(place: Place) -> None:
    [id] = new_ids(1)
    place.jobs.add([NewJob(id, JobKind.TRAIN, "digits", 0, "train", input=b"[]")])
    what, info = place.run(id)
    assert (what, info.state) == ("failed", JobState.FAILED)
    assert info.error is not None
    assert "not a valid TrainRequest" in info.error.message
