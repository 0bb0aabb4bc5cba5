"""The Overview, the models, their versions, and the devices."""

import html
import json
import re
from dataclasses import replace

from forebay.contract.job import JobKind, JobState, new_ids
from forebay.contract.metrics.statistics import Statistics
from forebay.contract.model import ModelVersion
from forebay.contract.references import ModelRef
from forebay.contract.requests.versions.benchmark import Benchmark, Curve, Point
from forebay.contract.signature import Signature
from forebay.storage.jobs.records import NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.models.benchmarks import BenchmarkStore
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.workers import WorkerRegistry
from support.dashboard import Site, page_text
from support.dashboard_data import Scene
from support.waiting import wait_until


def test_a_version_shows_its_lineage_and_evaluations(site: Site, scene: Scene) -> None:
    page = site.text("/models/iris/2")
    told = page_text(page)
    for words in (
        "iris/2 trained by run", "on data sha256:5d5d", "rows.train 105", "parent iris/1 @baseline",
        "data/iris-2025.parquet 30 rows, 0.041 ms per row", "accuracy 0.95", "900 rows, 3 others unusable, 0.041 ms",
        "Held-out rows of its training 30 rows",
    ):  # fmt: skip
        assert words in told, words
    for name in ("first", "second"):
        assert f'href="/training/{scene.runs[name]}"' in page
    assert 'href="/models/iris/1"' in page
    assert 'href="/models/iris/2"' in site.text("/models/iris/1"), "and back"
    assert 'href="/models/iris/2"' in site.text("/models")
    assert "its metadata names no training run" in page_text(site.text("/models/digits/2"))
    for path in (
        "/models/iris/9",
        "/models/nobody/1",
        "/models/iris/0",
        "/models/iris/999999999",
        "/models/iris/9999999999",
    ):
        assert site.ask(path).status == 404, path


def test_metadata_that_only_look_like_a_lineage_break_no_page(site: Site, scene: Scene) -> None:
    models, metrics = ModelRegistry(scene.ledger), {"accuracy": 0.25, "<b>": "text"}
    odd = ModelVersion("odd", 0, "python", "", "none", 0, Signature.parse(None, None))
    for lineage in (
        "text",
        {"job": 7, "parent": "../../x", "params": [1], "rows": None},
        {"parent": "odd/3", "sha256": 1},
        {"made_by": "<i>", "job": "a/../b", "difference": {"absolute": None, "x": [1]}, "to": 1.5},
    ):
        models.register(replace(odd, metadata={"metrics": metrics, "lineage": lineage}))
    for version in (1, 2, 3, 4):
        assert site.ask(f"/models/odd/{version}").status == 200, version
    assert "(no longer registered)" in site.text("/models/odd/2")
    assert "Held-out rows of its training <b> text accuracy 0.25" in page_text(site.text("/models/odd/2"))


def test_a_version_that_was_made_of_another_one_shows_how_far_their_outputs_are_apart(site: Site, scene: Scene) -> None:
    found = {"rows": 1001, "absolute": 5.36e-7, "same_argmax": 1.0, "least_cosine": None}
    lineage = {
        "parent": "iris/2", "job": "0" * 32, "made_by": "convert", "to": "onnx", "difference": found,
        "rows_per_s": {"before": 2532.1, "after": 16202.0},
    }  # fmt: skip
    version = ModelVersion("iris", 0, "onnx", "", "none", 0, Signature.parse(None, None), metadata={"lineage": lineage})
    made = ModelRegistry(scene.ledger).register(version)
    page = site.text(f"/models/{made.ref}")
    told = "made by convert to onnx difference rows 1,001, absolute 5.36e-07, same argmax 1 rows per s before 2,532, after 16,202"
    assert told in page_text(page)
    assert f'href="/jobs/{"0" * 32}"' in page
    assert "parent iris/2" in page_text(page)
    assert "trained by run" in page_text(page), "the parent's"


def test_a_benchmark_is_drawn_and_its_best_batch_told_for_each_curve(site: Site, scene: Scene) -> None:
    ModelRegistry(scene.ledger).register(ModelVersion("fast", 0, "onnx", "", "none", 0, Signature.parse(None, None)))
    jobs, [id] = JobStore(scene.ledger), new_ids(1)
    jobs.add([NewJob(id, JobKind.BENCHMARK, "fast", 1, "cpu")])
    [claimed] = jobs.claim([id], "w@host", 30)
    points = (Point(1, 2.0, 2.5, 500.0), Point(2, 2.5, 3.0, 1234.0))
    curves = (
        Curve(2, None, points, 2, "larger batches are no faster"),
        Curve(1, None, points[:1], 1, "the time was up before 2 rows"),
    )
    BenchmarkStore(scene.ledger).finish(
        claimed, Benchmark(id, "fast", 1, "cpu", "random values", curves, applied=True), b""
    )
    page = site.text("/models/fast/1")
    text = page_text(page)
    assert "cpu 2 threads 2 applied 2.5 ms 1,234 larger batches are no faster" in text
    assert "cpu 1 thread 1 2 ms 500 the time was up before 2 rows" in text
    assert f'href="/jobs/{id}"' in page
    series = json.loads(html.unescape(re.findall('data-series="([^"]*)"', page)[0]))
    assert [(chart["title"], chart["axis"], chart["steps"]) for chart in series] == [
        ("rows/s", "rows in a batch", [1, 2]), ("ms for a batch", "rows in a batch", [1, 2]),
    ]  # fmt: skip
    assert [(line["label"], line["values"]) for line in series[0]["lines"]] == [
        ("cpu, 2 threads", [500.0, 1234.0]), ("cpu, 1 thread", [500.0, None]),
    ]  # fmt: skip


def test_a_model_shows_which_workers_hold_it(site: Site) -> None:
    assert "gpu0@atlas (86.78 MiB)" in site.text("/models")


def test_the_overview_shows_device_utilisation(site: Site) -> None:
    told = page_text(site.text("/overview"))
    for words in ("gpu0@atlas cuda:0 71.0 % 18 GiB of 80 GiB", "cpu@birch cpu 1.3 cores 11 GiB of 32 GiB"):
        assert words in told, words


def test_the_overview_counts_what_the_ledger_holds(site: Site, scene: Scene) -> None:
    page = site.text("/overview")
    counts = scene.store.queries.counts()
    counts[JobState.RUNNING] -= len(
        scene.store.queries.find(kind=JobKind.BATCH, state=[JobState.RUNNING])
    )  # their shards run
    for state in (JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED):
        assert f">{counts[state]:,}<span" in page, state
    assert "gpu0@atlas, gpu1@atlas" in page
    assert "1 worker fell silent: cpu@cedar for " in page
    assert "cpu@cedar" in site.text("/devices")


def test_a_device_shows_its_memory_its_models_and_how_full_its_batches_are(site: Site) -> None:
    page = re.sub(r"<[^>]+>|\s+", " ", site.text("/devices"))
    page = re.sub(r" +", " ", page[page.index("gpu0@atlas") :])
    for words in (
        "18 GiB of 80 GiB", "71.0 %", "minilm/1 86.78 MiB", "of at most 68 GiB; 3 loaded, 1 dropped",
        "Rows in a batch", "17 to 32 40", "Padding in a batch", "up to 10 % 30", "2.5 GiB of memory, 1.3 cores",
    ):  # fmt: skip
        assert words in page, words


def test_a_version_that_generates_text_shows_its_tokens_and_their_pace(site: Site, scene: Scene) -> None:
    model = ModelRegistry(scene.ledger).register(
        ModelVersion("smollm", 0, "text-generation", "", "none", 0, Signature())
    )
    workers = WorkerRegistry(scene.ledger)
    try:
        assert "Tokens read" not in page_text(site.text("/models/smollm/1"))
        for name in ("text1", "text2"):
            counted, key = Statistics(), ("smollm", "1")
            counted.count("prompt_tokens_total", *key, by=600)
            counted.count("completion_tokens_total", *key, by=3000)
            counted.observe_all("forward_seconds", [5.0, 7.5], *key)
            counted.observe_all("batch_rows", [4, 8], *key)
            counted.observe_all("first_text_seconds", [0.25, 0.75], *key)
            workers.heartbeat(name, "host", "cpu", ("cpu",), scene.ledger.now(), json.dumps(counted.as_dict()))
        told = wait_until(
            lambda: "Tokens read" in (page := page_text(site.text("/models/smollm/1"))) and page, "it shows"
        )
        for words in (
            "Tokens read 1,200", "Tokens generated 6,000", "Pace 240 tokens generated in a second of work",
            "Rows in a batch 6 of 32 on average", "First text 500 ms after its batch began, on average",
        ):  # fmt: skip
            assert words in told, words
    finally:
        for name in ("text1", "text2"):
            workers.remove(name)
        ModelRegistry(scene.ledger).delete(ModelRef(model.name, model.version))
