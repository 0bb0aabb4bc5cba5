"""A ledger with an hour of a small team's work in it, for screenshots and for tests of the dashboard's pages.

The jobs go the way jobs go, through JobStore, by a clock that is moved; only the workers are not real. The same every time
but for the ids and the hour it ends at.
"""

import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import numpy as np

from forebay.contract.job import IdGenerator, JobError, JobKind, JobState, new_ids
from forebay.contract.metrics.statistics import Statistics
from forebay.contract.model import ModelVersion
from forebay.contract.row_errors import ErrorKind, ErrorSample
from forebay.contract.signature import Signature
from forebay.contract.wire import codec
from forebay.contract.wire.payload import pack_input
from forebay.storage.jobs.records import Finished, NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.migrate import upgrade
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.records import Evaluation
from forebay.storage.workers import WorkerRegistry
from support.batches import MadeBatch
from support.training_data import CONFUSION, DATA, STEPS, MadeRun, make_evaluation
from support.waiting import FakeClock

WORKERS = {"digits": "cpu@birch", "minilm": "gpu0@atlas", "resnet50": "gpu1@atlas"}
QUEUES = {"digits": "cpu", "minilm": "gpu", "resnet50": "gpu"}
VERSIONS = {"digits": 2, "minilm": 1, "resnet50": 1}
USERS = ("ada", "grace", "<script>alert('user')</script>")
ERRORS = (
    JobError("ValueError", "row 0: input 'x' holds NaN, which this model refuses"),
    JobError(
        "RuntimeError", "The size of tensor a (224) must match the size of tensor b (223)\n  at layer1.0.conv2 <b>&"
    ),
)

KINDS = (
    ErrorKind("InvalidInput", 9, tuple(
        ErrorSample(f"row {i}", f"column 'text': expected str, got {got}") for i, got in ((17, "None"), (218, "3.5"))
    )),
    ErrorKind("ValueError", 2, (ErrorSample("row 61", "too long: <img src=x onerror=alert(2)> 9,412 tokens, at most 512"),)),
)  # fmt: skip


class Scene:
    """Fills a new ledger; `interesting` names one job of each state."""

    def __init__(self, url: str, *, minutes: int = 60, now: float | None = None) -> None:
        self.end = now or time.time()
        self.clock = FakeClock(self.end - 60.0 * minutes)
        self.ledger = Ledger(url, create=True, clock=self.clock)
        upgrade(self.ledger)
        self.ledger.now = self.clock  # type: ignore[method-assign] # PostgreSQL's own clock cannot be moved
        self.store = JobStore(self.ledger)
        self.workers = WorkerRegistry(self.ledger)
        self.random = random.Random(7)
        self.make_ids = IdGenerator(self.clock).many
        self.interesting: dict[JobState, str] = {}
        self._register()
        self._work(minutes)
        self._training()
        self._leave_some()
        self.beat()

    def beat(self) -> None:
        """Every worker but one says that it lives."""
        self.clock.now = time.time()
        for name, device, queue in (("gpu0", "cuda:0", "gpu"), ("gpu1", "cuda:1", "gpu"), ("cpu", "cpu", "cpu")):
            host = "birch" if name == "cpu" else "atlas"
            stats = json.dumps(_statistics(name).as_dict())
            self.workers.heartbeat(f"{name}@{host}", host, device, (queue,), self.end - 3600, stats)

    def _register(self) -> None:
        models, at = ModelRegistry(self.ledger), self.clock.now
        array = {"x": {"dtype": "float32", "shape": [64]}}, {"output": {"dtype": "float32", "shape": [10]}}
        text = {"text": {"dtype": "str"}}, {"embedding": {"dtype": "float32", "shape": [384]}}
        image = (
            {"image": {"dtype": "float32", "shape": [3, 224, -1]}},
            {"logits": {"dtype": "float32", "shape": [1000]}},
        )
        for name, signature, size, resources in (
            ("digits", array, 10_700, {}), ("digits", array, 10_702, {}),
            ("minilm", text, 91_000_000, {"gpu": 1.0, "gpu_memory": 2**31}),
            ("resnet50", image, 102_500_000, {"gpu": 1.0, "gpu_memory": 2**32}),
        ):  # fmt: skip
            runtime = "sentence-transformers" if name == "minilm" else "torch-export"
            digest = f"sha256:{self.random.getrandbits(256):064x}"
            models.register(
                ModelVersion(
                    name,
                    0,
                    runtime,
                    digest,
                    "file",
                    size,
                    Signature.parse(*signature),
                    256,
                    resources=resources,
                    metadata={"trained on": "2026-11", "owner": USERS[2] if name == "digits" else "ada"},
                )
            )
            self.clock.forward(1)
        models.set_alias("digits", "champion", 2)
        models.set_alias("minilm", "production", 1)
        self.workers.heartbeat("cpu@cedar", "cedar", "cpu", ("cpu",), at - 86_400)  # and never again
        self.clock.now = at

    def _work(self, minutes: int) -> None:
        for minute in range(minutes):
            start = self.clock.now
            load = 1.2 + math.sin(minute / 9) + (2.5 if 24 <= minute < 30 else 0)
            for model, share in (("digits", 18), ("minilm", 9), ("resnet50", 5)):
                count = max(1, round(share * load))
                self.clock.now = start + self.random.uniform(0, 2)
                ids = self.add(count, model)
                self._run(ids, model, load)
            self.clock.now = start + 60

    def _run(self, ids: Sequence[str], model: str, load: float) -> None:
        for i in range(0, len(ids), 16):
            self.clock.forward(self.random.uniform(0.05, 0.8) * load)
            claimed = self.store.claim(ids[i : i + 16], WORKERS[model], 30)
            self.clock.forward(self.random.uniform(0.02, 0.4) * (3 if model == "resnet50" else 1))
            self.store.finish([self._outcome(job.id, job.attempt, model) for job in claimed])

    def _outcome(self, id: str, attempt: int, model: str) -> Finished:
        if self.random.random() < (0.06 if model == "resnet50" else 0.004):
            return Finished(id, attempt, error=self.random.choice(ERRORS))
        return Finished(id, attempt, codec.encode(np.linspace(0, 1, 10, dtype=np.float32)))

    def _leave_some(self) -> None:
        """A backlog, jobs that run, one of each sort to look at, and a batch with its shards."""
        self.clock.now = self.end - 240
        self.add(900, "resnet50")
        self.clock.now = self.end - 20
        self.add(40, "digits")
        self.store.claim(self.add(32, "minilm"), WORKERS["minilm"], 30)
        (queued,), (canceled,), (failed,), (running,) = (self.add(1, "digits") for _ in range(4))
        self.store.cancel([canceled])
        self.store.free_crashed(
            [job.id for job in self.store.claim([failed], "cpu@cedar", 30)], "cpu@cedar", "signal 9"
        )
        (again,) = self.store.claim([failed], "cpu@birch", 30)
        self.clock.forward(1.25)
        self.store.finish([Finished(failed, again.attempt, error=ERRORS[1])])
        self.store.claim([running], "cpu@birch", 30)
        (done,) = self.add(1, "digits", metadata={"run": "<img src=x onerror=alert(1)>", "user": USERS[0]})
        (job,) = self.store.claim([done], "cpu@birch", 30)
        self.clock.forward(0.042)
        self.store.finish([self._outcome(job.id, job.attempt, "digits")])
        self.interesting = {
            JobState.QUEUED: queued, JobState.CANCELED: canceled, JobState.FAILED: failed, JobState.RUNNING: self._batches(),
            JobState.SUCCEEDED: done,
        }  # fmt: skip

    def _training(self) -> None:
        """Two runs that became versions, of which the second is better, one that runs, one that failed, one that waits."""
        self.clock.now = self.end - 2400
        models = ModelRegistry(self.ledger)
        first = MadeRun(self.ledger, {"epochs": 10, "lr": 0.01, "hidden": 16})
        self._train(first, STEPS, rate=0.02)
        parent = first.finish(0.9333)
        second = MadeRun(
            self.ledger, {"epochs": 10, "lr": 0.03, "hidden": 32, "note": USERS[2]}, metadata={"user": USERS[2]}
        )
        self._train(second, STEPS, rate=0.05)
        better = second.finish(0.9667, parent=parent.ref)
        failed = MadeRun(self.ledger, {"epochs": 10, "lr": 30.0, "hidden": 16})
        self._train(failed, 60, rate=-0.005)
        failed.fail(JobError("Diverged", "the loss is no number from step 70 on <b>&; lower lr (30.0)"))
        self.clock.now = self.end - 150
        running = MadeRun(self.ledger, {"epochs": 10, "lr": 0.02, "hidden": 64})
        self._train(running, 120, rate=0.04)
        self.add(1, "iris", kind=JobKind.TRAIN, queue="train", version=0)
        self.runs = {"first": first.id, "second": second.id, "failed": failed.id, "running": running.id}
        models.set_alias("iris", "baseline", parent.version)
        for rows, data in ((30, "data/iris-2025.parquet"), (900, f"s3://lake/{USERS[2]}.parquet")):
            found = {"accuracy": 0.95, "f1": 0.9481, "loss": 0.1212}
            make_evaluation(
                self.ledger,
                Evaluation(
                    *new_ids(1),
                    "iris",
                    better.version,
                    data,
                    "9b" * 32,
                    rows,
                    found,
                    CONFUSION,
                    DATA.classes,
                    0.041,
                    rows // 300,
                ),
            )

    def _train(self, run: MadeRun, until: int, *, rate: float) -> None:
        self.clock.forward(1)
        run.train(until, rate=rate, tick=lambda: self.clock.forward(1.1))

    def _batches(self) -> str:
        """One that has ended, one with very many shards, and one that runs, whose id it is."""
        self.clock.now = self.end - 90
        ended = MadeBatch(self.ledger, 3, output="/data/out/november", metadata={"user": USERS[2]})
        ended.finish(range(3))
        ended.complete()
        long = MadeBatch(self.ledger, 700, output="s3://warehouse/embeddings/2026-11")
        long.finish_quickly(range(430), KINDS, bad=range(0, 430, 61))
        long.fail([433], ERRORS[1])
        long.run([430, 431, 432], 300)
        self.many_shards = long.id
        short = MadeBatch(self.ledger, 12, output=f"/data/out/{USERS[2]}", metadata={"user": USERS[2]})
        self.clock.forward(2)
        short.finish(range(5))
        short.finish([5, 6], KINDS)
        short.run([7], 640, 3)
        short.run([8], 120, worker="gpu1@atlas")
        return short.id

    def add(self, count: int, model: str, *, metadata: Mapping[str, Any] | None = None, **more: Any) -> list[str]:
        """Queue so many jobs of a model now."""
        given = metadata or {"user": self.random.choice(USERS), "run": self.random.randrange(4)}
        row = {"x": np.arange(64, dtype=np.float32) / 64} if model == "digits" else {"text": "A <b>bold</b> sentence."}
        data = pack_input([row], batched=False)
        defaults: dict[str, Any] = {"version": VERSIONS.get(model), "queue": QUEUES.get(model)}
        defaults |= {"kind": JobKind.PREDICT, "client": "5f0c1d2e3a4b5c6d", "input": data, "rows": 1}
        return self.store.add(
            [
                NewJob(
                    id=id, model=model, metadata=given, **(defaults | more)
                )
                for id in self.make_ids(count)
            ]
        )  # fmt: skip

    def close(self) -> None:
        """Give the connections back."""
        self.ledger.close()


def _statistics(name: str) -> Statistics:
    """What a worker of the scene has counted."""
    stats = Statistics()
    gpu, model = name != "cpu", {"cpu": ("digits", "2"), "gpu0": ("minilm", "1"), "gpu1": ("resnet50", "1")}[name]
    stats.set("device_memory_used_bytes", (18 if gpu else 11) * 2**30)
    stats.set("device_memory_total_bytes", (80 if gpu else 32) * 2**30)
    stats.set("model_bytes", {"cpu": 10_702, "gpu0": 91_000_000, "gpu1": 102_500_000}[name], *model)
    stats.set("model_cache_budget_bytes", (68 if gpu else 16) * 2**30)
    stats.set("worker_memory_bytes", 2.5 * 2**30)
    stats.set("worker_cpu_cores", 1.3)
    if gpu:
        stats.set("device_utilization_ratio", 0.71 if name == "gpu0" else 0.34)
    stats.count("model_loads_total", *model, "loaded", by=3)
    stats.count("model_evictions_total", *model)
    for rows, times in ((1, 6), (8, 12), (16, 25), (32, 40), (64, 9)):
        stats.observe("batch_rows", rows, *model, times=times)
    if name == "gpu0":
        for share, times in ((0.0, 12), (0.04, 44), (0.08, 30), (0.2, 6)):
            stats.observe("batch_padding_ratio", share, *model, times=times)
    return stats


def page_paths(scene: Scene) -> dict[str, str]:
    """The path of every page by a short name."""
    jobs = {f"job-{state}": f"/jobs/{id}" for state, id in scene.interesting.items()}
    runs = {"run" if name == "second" else f"run-{name}": f"/training/{id}" for name, id in scene.runs.items()}
    return {
        "overview": "/overview",
        "overview-day": "/overview?window=day",
        "jobs": "/jobs",
        "jobs-failed": "/jobs?state=failed",
        **jobs,
        "batches": "/batches",
        "batch": f"/batches/{scene.interesting[JobState.RUNNING]}",
        "batch-many": f"/batches/{scene.many_shards}",
        "training": "/training",
        **runs,
        "compare": compare_path(scene, "first", "second", "running"),
        "models": "/models",
        "version": "/models/iris/2",
        "devices": "/devices",
    }


def compare_path(scene: Scene, *names: str) -> str:
    return f"/training/compare?{urlencode([('run', scene.runs[name]) for name in names])}"
