"""A tune that no worker runs: it goes the way tunes go, through TuneStore, as a test or a picture wants it."""

import math
import random

from forebay.contract.job import JobError, JobKind, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.requests.batch import InputFile
from forebay.contract.requests.request import encode
from forebay.contract.requests.training import Point, Trained, TrainRequest
from forebay.contract.requests.tuning import Range, TuneRequest
from forebay.contract.signature import Signature
from forebay.contract.wire import codec
from forebay.storage.jobs.records import Finished, NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.training.store import TrainingStore
from forebay.storage.tuning.store import TuneStore

STEPS = 40
SPACE = {"lr": Range(1e-4, 1e-1, log=True), "hidden": ([32], [64], [128, 64]), "dropout": Range(0.0, 0.5)}


def make_tune(ledger: Ledger, trials: int = 16, *, end: bool = True) -> str:
    """A tune whose accuracy depends on lr; every fourth trial is pruned, the sixth has failed, and without `end` one runs."""
    [id], dice = new_ids(1), random.Random(1)
    jobs, tunes, runs = JobStore(ledger), TuneStore(ledger), TrainingStore(ledger)
    train = TrainRequest("classifier", (InputFile("iris.parquet", 1),), "parquet", target="species", metric="accuracy")
    asked = TuneRequest(train, SPACE, trials=trials, pruner="median", parallel=2)
    jobs.add([NewJob(id, JobKind.TUNE, "iris", 0, "train", input=encode(asked))])
    [tune] = jobs.claim([id], "train@birch", 30)
    tunes.start(tune)
    tunes.parents.hand_off(tune)
    for number in range(trials):
        params = {
            "lr": 10 ** dice.uniform(-4, -1),
            "hidden": dice.choice(SPACE["hidden"]),
            "dropout": dice.uniform(0, 0.5),
        }  # type: ignore[arg-type]
        request = asked.trial(params)
        routed = tunes.add_trial(tunes.queries.get(id), number, params, (encode(request), None))
        assert routed is not None
        [job] = jobs.claim([routed.id], "train@birch", 30)
        runs.start(job, request)
        pruned, value = number % 4 == 3, 0.95 - 0.1 * abs(math.log10(params["lr"]) + 2.5) + dice.uniform(0, 0.02)
        done = STEPS // 4 if pruned else STEPS
        runs.add_metrics(job, [Point(done, 10, "validation", {"accuracy": value}, steps=STEPS)], "epoch 10")
        if number == 5:
            jobs.finish(
                [Finished(job.id, job.attempt, error=JobError("InvalidInput", "the training loss is nan: lower lr"))]
            )
        elif pruned:
            tunes.prune(job, done, value - 0.2)
            jobs.cancel([job.id])
            jobs.release([job.id], "train@birch")
        elif end or number < trials - 1:
            place = tunes.queries.place(job.id)
            assert place is not None
            metrics = {"accuracy": value - 0.01}
            blob, nothing = f"sha256:{number:064x}", Signature.parse(None, None)
            made = ModelVersion("iris", 0, "recipe", blob, "folder", 10, nothing, metadata={"metrics": metrics})
            told = codec.encode({"tune": id, "trial": number})
            tunes.finish_trial(job, place, "accuracy", value, Trained(metrics, "recipe", {}, {}), made, told)
    tunes.parents.set_progress(id, trials if end else trials - 1, trials, "")
    if end:
        tunes.complete(tunes.queries.get(id), None, "accuracy", trials, lambda version, *_: codec.encode(version.ref))
    return id
