"""Our pages over HTTP: what they show of real jobs and escape, who may change something, how they do without a ledger."""

import http.client
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
import redis

from forebay.contract.job import JobKind, JobState, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature
from forebay.dashboard.pages.base import HEADERS
from forebay.storage.jobs.records import NewJob
from forebay.storage.models.registry import ModelRegistry
from support.batches import MadeBatch
from support.dashboard import Dashboard, Dashboards, basic_login
from support.dashboard_data import USERS, Scene
from support.ledgers import upgrade_once
from support.servers import PostgresServer, ValkeyServer
from support.waiting import wait_until

OURS = (
    "/overview",
    "/overview?window=day",
    "/jobs",
    "/jobs?state=failed",
    "/batches",
    "/training",
    "/models",
    "/devices",
)
OPERATOR, VIEWER = {"Authorization": basic_login("ada:p")}, {"Authorization": basic_login("bob:q")}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    text: str


class Site:
    """A dashboard and how to talk to it, headers and all."""

    def __init__(self, dashboard: Dashboard) -> None:
        self.dashboard = dashboard
        self.port = urlsplit(dashboard.url).port

    def ask(self, path: str, method: str = "GET", body: str | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, {"Host": f"127.0.0.1:{self.port}"} | given)
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read().decode())
        finally:
            connection.close()

    def text(self, path: str, **headers: str) -> str:
        reply = self.ask(path, **headers)
        assert reply.status == 200, reply.text
        return reply.text

    def do(
        self, id: str, deed: str, *, confirmed: str = "yes", token: bool = True, among: str = "jobs", **headers: str
    ) -> Reply:
        """What the button on a job's page, or on the page of a batch, sends."""
        login = {"Authorization": headers["Authorization"]} if "Authorization" in headers else {}
        page = self.ask(f"/{among}/{id}", **login)
        cookie = page.headers["Set-Cookie"].partition(";")[0]
        form = urlencode({"confirmed": confirmed} | ({"_xsrf": cookie.partition("=")[2].strip('"')} if token else {}))
        given = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"} | headers
        return self.ask(f"/{among}/{id}/{deed}", "POST", form, **given)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    scene = Scene(f"sqlite:///{tmp_path_factory.mktemp('scene') / 'ledger.db'}", minutes=30)
    yield scene
    scene.close()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboards]:
    with ExitStack() as stack:
        yield Dashboards(tmp_path_factory.mktemp("dashboards"), stack)


@pytest.fixture(scope="module")
def site(started: Dashboards, scene: Scene, valkey: ValkeyServer) -> Site:
    """Without a login, so that everybody here is an operator."""
    return Site(started.start(valkey.url, FOREBAY_DATABASE=scene.ledger.url))


@pytest.fixture(scope="module")
def guarded(started: Dashboards, scene: Scene, valkey: ValkeyServer) -> Site:
    """Behind a login: ada operates, bob looks on."""
    login = {"FLOWER_BASIC_AUTH": "ada:p,bob:q", "FOREBAY_OPERATORS": "ada", "FOREBAY_DASHBOARD_HOST": "0.0.0.0"}  # noqa: S104
    return Site(started.start(valkey.url, FOREBAY_DATABASE=scene.ledger.url, **login))


@pytest.fixture(autouse=True)
def queue_is_up(broker: str) -> None:
    """Valkey runs in every test, whatever the one before did to it."""


def every_page(scene: Scene) -> tuple[str, ...]:
    batches = (f"/batches/{scene.interesting[JobState.RUNNING]}", f"/batches/{scene.many_shards}")
    runs = (*(f"/training/{id}" for id in scene.runs.values()), compared(scene, "first", "second"), "/models/iris/2")
    return (*OURS, *(f"/jobs/{id}" for id in scene.interesting.values()), *batches, *runs)


def compared(scene: Scene, *names: str) -> str:
    return f"/training/compare?{urlencode([('run', scene.runs[name]) for name in names])}"


def ids_in(page: str) -> list[str]:
    return re.findall(r'id="job-([0-9a-f]{32})"', page)


def test_the_front_door_leads_to_the_overview(site: Site) -> None:
    reply = site.ask("/")
    assert (reply.status, reply.headers["Location"]) == (302, "/overview")


def test_every_page_of_ours_and_of_flowers_has_all_tabs(site: Site, scene: Scene) -> None:
    for path in (*every_page(scene), "/workers", "/tasks", "/broker"):
        page = site.text(path)
        for tab in (
            "/overview",
            "/jobs",
            "/batches",
            "/training",
            "/models",
            "/devices",
            "/workers",
            "/tasks",
            "/broker",
        ):
            assert f'href="{tab}"' in page, (path, tab)


def test_our_pages_carry_their_headers_and_hold_no_script_or_style_within(site: Site, scene: Scene) -> None:
    for path in every_page(scene):
        reply = site.ask(path)
        assert {name: reply.headers[name] for name in HEADERS} == HEADERS, path
        assert "unsafe" not in reply.headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in reply.headers
        assert re.findall(r"<script(?![^>]*\ssrc=)[^>]*>", reply.text) == [], path
        assert re.findall(r"<[^>]*\s(?:on\w+|style)\s*=[^>]*>", reply.text) == [], path
        assert (
            re.findall(r'(?:src|href)="(?:https?:)?//(?!flower\.readthedocs\.io|github\.com)[^"]*"', reply.text) == []
        ), path


def test_what_users_wrote_is_shown_as_text(site: Site, scene: Scene) -> None:
    done, failed = scene.interesting[JobState.SUCCEEDED], scene.interesting[JobState.FAILED]
    pages = {path: site.text(path) for path in (f"/jobs/{done}", f"/jobs/{failed}", "/models")}
    running = scene.interesting[JobState.RUNNING]
    batch = pages["batch"] = site.text(f"/batches/{running}")
    pages["batches"] = site.text("/batches")
    pages |= {path: site.text(path) for path in every_page(scene)}
    escaped = "&lt;script&gt;alert("
    for path in (f"/training/{scene.runs['second']}", compared(scene, "first", "second"), "/models/iris/2"):
        assert escaped in pages[path], path
    assert "from step 70 on &lt;b&gt;&amp;" in pages[f"/training/{scene.runs['failed']}"]
    assert "too long: &lt;img src=x onerror=alert(2)&gt;" in batch
    assert "/data/out/&lt;script&gt;alert(" in batch
    assert "/data/out/&lt;script&gt;alert(" in pages["batches"]
    assert "<img" not in pages[f"/jobs/{done}"].replace('<img src="/static/favicon.ico', "")
    assert "&lt;img src=x onerror=alert(1)&gt;" in pages[f"/jobs/{done}"]
    assert "conv2 &lt;b&gt;&amp;" in pages[f"/jobs/{failed}"]
    assert "&lt;script&gt;alert(&#x27;user&#x27;)&lt;/script&gt;" in pages["/models"].replace("&#39;", "&#x27;")
    assert all("<script>alert" not in page for page in pages.values())


def test_what_stands_in_the_address_is_shown_as_text(site: Site, scene: Scene) -> None:
    evil = '"><script>alert(1)</script>'
    for field in ("queue", "worker", "metadata", "model", "id", "state", "since"):
        page = site.ask(f"/jobs?{urlencode({field: evil})}").text
        assert "<script>alert" not in page, field
    assert "<script>alert" not in site.text(f"/models?{urlencode({'name': evil})}")
    assert "<script>alert" not in site.ask(f"/batches?{urlencode({'model': evil, 'state': evil})}").text
    batch = scene.interesting[JobState.RUNNING]
    assert "<script>alert" not in site.text(f"/batches/{batch}?{urlencode({'shards': evil, 'said': evil})}")


def test_a_field_that_cannot_be_meant_is_named_beside_the_form(site: Site) -> None:
    reply = site.ask("/jobs?state=failed&model=a/b/c&queue=cpu")
    assert reply.status == 400
    assert "&#x27;a/b/c&#x27; is not a valid model reference" in reply.text.replace("&#39;", "&#x27;")
    assert 'name="queue" value="cpu"' in reply.text
    assert site.ask("/jobs?model=nobody@champion").status == 400


@pytest.mark.parametrize(
    ("query", "many"),
    [("worker=gpu1@atlas", 3), ("state=queued&queue=gpu", 10), ("model=digits@champion&state=succeeded", 3)],
)
def test_the_older_links_lead_through_every_job_once(site: Site, scene: Scene, query: str, many: int) -> None:
    path, seen, pages = f"/jobs?{query}", list[str](), 0
    while path:
        page = site.text(path)
        seen += ids_in(page)
        pages += 1
        assert pages < 100
        link = re.search(r'id="older" rel="next" href="([^"]+)"', page)
        path = unescape(link[1]) if link else ""
    fields = dict(pair.split("=") for pair in query.split("&"))
    jobs = scene.store.find(limit=10_000)
    expected = [
        job.id
        for job in jobs
        if all(fields.get(name) in (None, getattr(job, name)) for name in ("worker", "state", "queue"))
        and ("model" not in fields or (job.model, job.version) == ("digits", 2))
    ]
    assert seen == expected
    assert pages >= many


def test_a_filter_by_metadata_finds_what_a_script_wrote(site: Site, scene: Scene) -> None:
    page = site.text(f"/jobs?{urlencode({'metadata': f'user={USERS[2]}', 'state': 'failed'})}")
    found = ids_in(page)
    assert found
    assert {scene.store.get(id).metadata["user"] for id in found} == {USERS[2]}


def test_a_batch_leads_to_its_jobs_and_they_lead_back(site: Site, scene: Scene) -> None:
    batch = scene.interesting[JobState.RUNNING]
    assert f'href="/jobs?parent={batch}&amp;state=succeeded"' in site.text(f"/jobs/{batch}")
    shards = ids_in(site.text(f"/jobs?parent={batch}&state=succeeded"))
    assert len(shards) == 7
    shard = site.text(f"/jobs/{shards[0]}")
    assert f'href="/jobs/{batch}"' in shard
    assert f'href="/batches/{batch}"' in shard
    assert f'href="/batches/{batch}"' in site.text(f"/jobs/{batch}")
    assert f'href="/jobs/{batch}"' in site.text(f"/batches/{batch}")
    assert len(ids_in(site.text(f"/jobs?kind={JobKind.SHARD}&parent={batch}"))) == 12


def words_of(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page)))


def test_the_list_of_batches_tells_how_far_each_is_and_filters(site: Site, scene: Scene) -> None:
    def listed(page: str) -> list[str]:
        return re.findall(r'id="batch-([0-9a-f]{32})"', page)

    everything = [job.id for job in scene.store.find(kind=JobKind.BATCH)]
    assert listed(site.text("/batches")) == everything
    assert listed(site.text("/batches?state=succeeded")) == everything[2:]
    assert listed(site.text("/batches?model=minilm/1&state=running")) == everything[:2]
    assert listed(site.text(f"/batches?before={everything[0]}")) == everything[1:]
    assert "No batch meets this filter." in site.text("/batches?model=digits")
    assert "7,763 of 12,000" in words_of(site.text("/batches"))
    refused = site.ask("/batches?state=none")
    assert refused.status == 400
    assert "no state is called" in refused.text


def test_a_batch_shows_its_rows_its_shards_and_why_rows_failed(site: Site, scene: Scene) -> None:
    batch = scene.interesting[JobState.RUNNING]
    page = site.text(f"/batches/{batch}")
    told = words_of(page)
    for words in (
        "Rows done 7,738 of 12,000", "Rows failed 25", "Shards done 7 of 12", "InvalidInput 18 rows", "ValueError 4 rows",
        "row 218 column 'text': expected str, got 3.5", "gpu1@atlas 120 of 1,000", "Format parquet", "text = text",
    ):  # fmt: skip
        assert words in told, words
    squares = re.findall(r'class="fb-cell fb-cell-(\w+)" tabindex="(-?\d)" title="([^"]+)"', page)
    assert [look for look, _, _ in squares] == ["succeeded"] * 5 + ["errors"] * 2 + ["running"] * 2 + ["queued"] * 3
    assert [stop for _, stop, _ in squares] == ["0"] + ["-1"] * 11
    assert squares[5][2] == "Shard 6: succeeded; some rows failed"
    assert len(re.findall(r'id="shard-([0-9a-f]{32})"', page)) == 12


def test_very_many_shards_share_squares_that_lead_to_the_table(site: Site, scene: Scene) -> None:
    page = site.text(f"/batches/{scene.many_shards}")
    squares = re.findall(r'title="([^"]+)" aria-label="[^"]+" href="(\?shards=[^"]+)"', page)
    assert len(squares) == 300
    assert squares[0][0] == "Shards 1 to 3: 3 succeeded; 1 with rows that failed"
    assert "1 shard failed as a whole" in words_of(page)
    there = site.text(f"/batches/{scene.many_shards}{squares[100][1].partition('#')[0]}")
    rows = re.findall(r'id="shard-[0-9a-f]{32}" href="[^"]+">(part-[\d-]+)<', there)
    assert rows[0] == unescape(squares[100][1]).partition("=")[2].partition("#")[0]
    assert len(rows) == 25
    assert 'id="previous-shards"' in there
    seen, path = [], f"/batches/{scene.many_shards}"
    while path:
        page = site.text(path)
        seen += re.findall(r'id="shard-([0-9a-f]{32})"', page)
        link = re.search(r'id="next-shards" rel="next" href="(\?[^"#]+)', page)
        path = f"/batches/{scene.many_shards}{unescape(link[1])}" if link else ""
    assert len(set(seen)) == len(seen) == 700


def test_the_list_of_runs_tells_how_far_each_is_what_it_is_worth_and_filters(site: Site, scene: Scene) -> None:
    def listed(page: str) -> set[str]:
        return set(re.findall(r'id="run-([0-9a-f]{32})"', page))

    runs = scene.runs
    assert len(listed(site.text("/training"))) == 5
    assert listed(site.text("/training?state=succeeded")) == {runs["first"], runs["second"]}
    assert listed(site.text("/training?model=iris&state=failed")) == {runs["failed"]}
    assert "No training run meets this filter." in site.text("/training?model=digits")
    assert site.ask("/training?state=none").status == 400
    told = words_of(site.text("/training"))
    for words in ("120 of 200", "accuracy 0.9667 held out", "iris/2", "validation, step 120"):
        assert words in told, words
    page = site.text("/training")
    assert set(re.findall(r'name="run" value="([0-9a-f]{32})"', page)) == set(runs.values()), "what waits has no curves"


def test_a_run_shows_its_curves_data_checkpoints_and_what_became_of_the_alias(site: Site, scene: Scene) -> None:
    page = site.text(f"/training/{scene.runs['second']}")
    told = words_of(page)
    for words in (
        "Best accuracy 0.9667 on held-out rows", "Alias moved : @champion moved from iris/1: accuracy 0.9667 is better",
        "105 train, 15 validation, 30 test", "params.lr 0.03", "2 rows with missing values", "200 10 12.25 KiB",
        "versicolor 0 9 1",
    ):  # fmt: skip
        assert words in told, words
    found = re.search(r'id="curves" hidden data-series="([^"]+)"', page)
    assert found
    charts = {chart["title"]: chart for chart in json.loads(unescape(found[1]))}
    assert list(charts) == ["loss", "accuracy", "lr", "rows/s"]
    assert [line["label"] for line in charts["loss"]["lines"]] == ["train", "validation"]
    assert charts["loss"]["steps"] == list(range(10, 201, 10))
    assert charts["accuracy"]["lines"][0]["look"] == charts["loss"]["lines"][1]["look"]
    assert f'href="/training/{scene.runs["second"]}"' in site.text(f"/jobs/{scene.runs['second']}")
    running = words_of(site.text(f"/training/{scene.runs['running']}"))
    assert "Time left about 8.8 s" in running
    waiting = next(job.id for job in scene.store.find(kind=JobKind.TRAIN, state=[JobState.QUEUED]))
    assert "It waits in queue train for a worker." in words_of(site.text(f"/training/{waiting}"))
    assert site.ask(f"/training/{scene.interesting[JobState.SUCCEEDED]}").status == 404


def test_compared_runs_show_what_differs(site: Site, scene: Scene) -> None:
    page = site.text(compared(scene, "first", "second", "running"))
    told, same = words_of(page).split("The same in all of them")
    for words in ("params.lr 0.01 0.03 0.02", "accuracy held out 0.9333 0.9667 –", "params.hidden 16 32 64"):
        assert words in told, words
    assert "params.epochs" not in told.partition("Runs and what differs")[2]
    assert "params.epochs 10" in same
    found = re.search(r'id="curves" hidden data-series="([^"]+)"', page)
    assert found
    charts = json.loads(unescape(found[1]))
    assert [chart["title"] for chart in charts][:2] == ["loss, validation", "loss, train"]
    assert all([line["label"] for line in chart["lines"]] == ["A", "B", "C"] for chart in charts)


@pytest.mark.parametrize("names", [(), ("first",), ("first", "first")])
def test_fewer_than_two_runs_are_not_compared(site: Site, scene: Scene, names: tuple[str, ...]) -> None:
    reply = site.ask(compared(scene, *names))
    assert reply.status == 400
    assert "2 to 6 runs can be compared" in reply.text


def test_only_runs_that_have_begun_are_compared(site: Site, scene: Scene) -> None:
    reply = site.ask(f"{compared(scene, 'first')}&run={scene.interesting[JobState.SUCCEEDED]}")
    assert reply.status == 400
    assert "is no training job that has begun" in reply.text
    assert site.ask("/training/compare?run=x&run=y").status == 400


def test_a_version_tells_where_it_comes_from_and_what_it_is_worth(site: Site, scene: Scene) -> None:
    page = site.text("/models/iris/2")
    told = words_of(page)
    for words in (
        "iris/2 trained by run", "on data sha256:5d5d", "rows.train 105", "compared with, or grown from iris/1 @baseline",
        "data/iris-2025.parquet 30 rows, 0.041 ms a row", "accuracy 0.95", "900 rows, 3 others could not be used, 0.041 ms",
        "Held-out rows of its training 30 rows",
    ):  # fmt: skip
        assert words in told, words
    for name in ("first", "second"):
        assert f'href="/training/{scene.runs[name]}"' in page
    assert 'href="/models/iris/1"' in page
    assert 'href="/models/iris/2"' in site.text("/models/iris/1"), "and back"
    assert 'href="/models/iris/2"' in site.text("/models")
    assert "its metadata tell of no training" in words_of(site.text("/models/digits/2"))
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
    ):
        models.register(replace(odd, metadata={"metrics": metrics, "lineage": lineage}))
    for version in (1, 2, 3):
        assert site.ask(f"/models/odd/{version}").status == 200, version
    assert "(not registered any more)" in site.text("/models/odd/2")
    assert "Held-out rows of its training <b> text accuracy 0.25" in words_of(site.text("/models/odd/2"))


def test_an_operator_cancels_a_run_on_its_page(guarded: Site, scene: Scene) -> None:
    (id,) = scene.add(1, "iris", kind=JobKind.TRAIN, queue="train", version=0)
    assert 'id="cancel"' in guarded.text(f"/training/{id}", **OPERATOR)
    assert 'id="cancel"' not in guarded.text(f"/training/{id}", **VIEWER)
    reply = guarded.do(id, "cancel", among="training", **OPERATOR)
    assert (reply.status, reply.headers["Location"]) == (303, f"/training/{id}?said=job_canceled")
    assert scene.store.get(id).state is JobState.CANCELED


def test_a_job_that_is_no_batch_has_no_page_among_them(site: Site, scene: Scene) -> None:
    assert site.ask(f"/batches/{scene.interesting[JobState.SUCCEEDED]}").status == 404
    assert site.ask(f"/batches/{'0' * 32}").status == 404


def test_a_batch_that_nobody_has_begun_says_so(site: Site, scene: Scene) -> None:
    (id,) = scene.add(1, "minilm", kind=JobKind.BATCH)
    assert "It waits in queue gpu for a worker that cuts it into shards." in words_of(site.text(f"/batches/{id}"))
    scene.store.cancel([id])
    ended = "It ended before it was cut into shards."
    wait_until(lambda: ended in words_of(site.text(f"/batches/{id}")), "the page says that it has ended")


def test_an_operator_cancels_and_retries_a_batch_on_its_page(guarded: Site, scene: Scene) -> None:
    batch = MadeBatch(scene.ledger, 3)
    page = guarded.text(f"/batches/{batch.id}", **OPERATOR)
    assert 'id="cancel"' in page
    looked_on = guarded.text(f"/batches/{batch.id}", **VIEWER)
    assert 'id="cancel"' not in looked_on
    assert "<dialog" not in looked_on
    assert guarded.do(batch.id, "cancel", among="batches", **VIEWER).status == 403
    reply = guarded.do(batch.id, "cancel", among="batches", **OPERATOR)
    assert (reply.status, reply.headers["Location"]) == (303, f"/batches/{batch.id}?said=job_canceled")
    assert scene.store.get(batch.id).state is JobState.CANCELED
    assert {scene.store.get(id).state for id in batch.shards} == {JobState.CANCELED}
    reply = guarded.do(batch.id, "retry", among="batches", **OPERATOR)
    assert reply.headers["Location"].endswith("?said=job_retried")
    assert scene.store.get(batch.id).state is JobState.QUEUED


def test_the_life_of_a_job_tells_of_the_attempt_that_was_lost(site: Site, scene: Scene) -> None:
    page = re.sub(r"<[^>]+>|\s+", " ", site.text(f"/jobs/{scene.interesting[JobState.FAILED]}"))
    order = [
        "Submitted",
        "Attempt 1 began",
        "on cpu@cedar",
        "Attempt 1 was lost",
        "signal 9",
        "Queued again",
        "Attempt 2 began",
        "on cpu@birch",
        "Failed",
        "after 1.2 s",
    ]
    places = [page.index(words) for words in order]
    assert places == sorted(places)


def test_input_and_result_are_previewed(site: Site, scene: Scene) -> None:
    page = site.text(f"/jobs/{scene.interesting[JobState.SUCCEEDED]}")
    assert "float32 of shape [64]" in page
    assert "float32 of shape [10]" in page
    assert "0.0, 0.015625, 0.03125" in page


def test_the_overview_tells_how_the_devices_are_used(site: Site) -> None:
    told = words_of(site.text("/overview"))
    for words in ("gpu0@atlas cuda:0 71.0 % 18 GiB of 80 GiB", "cpu@birch cpu 1.3 cores 11 GiB of 32 GiB"):
        assert words in told, words


def test_the_overview_counts_what_the_ledger_holds(site: Site, scene: Scene) -> None:
    page = site.text("/overview")
    counts = scene.store.counts()
    counts[JobState.RUNNING] -= len(scene.store.find(kind=JobKind.BATCH, state=[JobState.RUNNING]))  # their shards run
    for state in (JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED):
        assert f">{counts[state]:,}<span" in page, state
    assert "gpu0@atlas, gpu1@atlas" in page
    assert "cpu@cedar" not in page
    assert "cpu@cedar" in site.text("/devices")


def test_a_device_shows_its_memory_its_models_and_how_full_its_batches_are(site: Site) -> None:
    page = re.sub(r"<[^>]+>|\s+", " ", site.text("/devices"))
    page = re.sub(r" +", " ", page[page.index("gpu0@atlas") :])
    for words in (
        "18 GiB of 80 GiB", "71.0 %", "minilm/1 86.78 MiB", "of at most 68 GiB; 3 loaded, 1 dropped",
        "Rows in a batch", "17 to 32 40", "Padding in a batch", "up to 10 % 30", "2.5 GiB of memory, 1.3 cores",
    ):  # fmt: skip
        assert words in page, words


def test_a_model_shows_which_workers_hold_it(site: Site) -> None:
    assert "gpu0@atlas (86.78 MiB)" in site.text("/models")


def test_a_training_job_is_shown_by_its_models_name_alone(site: Site, scene: Scene) -> None:
    (id,) = new_ids(1)
    scene.store.add([NewJob(id, JobKind.TRAIN, "digits", 0, "train")])
    for path in (f"/jobs/{id}", "/jobs?kind=train"):
        page = site.text(path)
        assert ">digits<" in page
        assert "digits/0" not in page


def test_a_fragment_is_the_changing_part_alone(site: Site) -> None:
    fragment = site.text("/jobs?fragment=1&state=failed")
    assert "<html" not in fragment
    assert ids_in(fragment) == ids_in(site.text("/jobs?state=failed"))


@pytest.mark.parametrize("id", ["0" * 32, "x", "0" * 31])
def test_a_job_that_is_not_there_is_not_found(site: Site, id: str) -> None:
    assert site.ask(f"/jobs/{id}").status == 404


@pytest.mark.parametrize("path", ["/", "/overview", "/jobs", "/workers", "/tasks", "/metrics", "/static/js/flower.js"])
def test_a_name_that_points_here_is_no_way_in(site: Site, path: str) -> None:
    reply = site.ask(path, Host="evil.example")
    assert reply.status == 403
    assert "no name of this machine" in reply.text


def test_only_operators_see_buttons(guarded: Site, scene: Scene) -> None:
    for state, button in ((JobState.QUEUED, 'id="cancel"'), (JobState.FAILED, 'id="retry"')):
        path = f"/jobs/{scene.interesting[state]}"
        assert button in guarded.text(path, **OPERATOR)
        looked_on = guarded.text(path, **VIEWER)
        assert button not in looked_on
        assert "<dialog" not in looked_on


def test_an_operator_cancels_and_retries(guarded: Site, scene: Scene, valkey: ValkeyServer) -> None:
    (id,) = scene.add(1, "digits")
    reply = guarded.do(id, "cancel", **OPERATOR)
    assert (reply.status, reply.headers["Location"]) == (303, f"/jobs/{id}?said=job_canceled")
    assert scene.store.get(id).state is JobState.CANCELED
    assert "The job was canceled." in guarded.text(reply.headers["Location"], **OPERATOR)
    late = guarded.do(id, "cancel", **OPERATOR)
    assert late.headers["Location"].endswith("?said=job_moved_on")
    reply = guarded.do(id, "retry", **OPERATOR)
    assert reply.headers["Location"].endswith("?said=job_retried")
    assert scene.store.get(id).state is JobState.QUEUED
    with redis.Redis.from_url(valkey.url) as client:
        assert sum(client.llen(f"cpu{step}") for step in ("", ":3", ":6", ":9")) == 1
    said = [line for line in guarded.dashboard.said.splitlines() if id in line and "level=info" in line]
    assert ["event=job_canceled" in said[0], "event=job_retried" in said[1]] == [True, True]
    assert all("user=ada" in line for line in said)


def test_a_running_job_is_asked_to_stop_once(guarded: Site, scene: Scene) -> None:
    (id,) = scene.add(1, "digits")
    scene.store.claim([id], "cpu@birch", 30)
    reply = guarded.do(id, "cancel", **OPERATOR)
    assert reply.headers["Location"].endswith("?said=job_cancel_requested")
    assert scene.store.get(id).cancel_requested_at is not None
    page = guarded.text(reply.headers["Location"], **OPERATOR)
    assert "was asked to stop" in page
    assert "Cancel asked for" in page
    assert 'id="cancel"' not in page


def test_a_viewer_may_not(guarded: Site, scene: Scene) -> None:
    assert guarded.do(scene.interesting[JobState.QUEUED], "cancel", **VIEWER).status == 403
    assert guarded.do(scene.interesting[JobState.FAILED], "retry", **VIEWER).status == 403
    assert scene.store.get(scene.interesting[JobState.QUEUED]).state is JobState.QUEUED


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({"token": False}, 403),
        ({"confirmed": ""}, 400),
        ({"Cookie": "_xsrf=2|00|00|0"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
@pytest.mark.parametrize("behind_a_login", [False, True])
def test_what_does_not_come_from_the_button_changes_nothing(
    site: Site, guarded: Site, scene: Scene, how: dict[str, str], status: int, behind_a_login: bool
) -> None:
    id, login = scene.interesting[JobState.QUEUED], OPERATOR if behind_a_login else {}
    reply = (guarded if behind_a_login else site).do(id, "cancel", **how, **login)  # type: ignore[arg-type]
    assert reply.status == status
    assert scene.store.get(id).state is JobState.QUEUED


def test_a_get_changes_nothing(site: Site, scene: Scene) -> None:
    assert site.ask(f"/jobs/{scene.interesting[JobState.QUEUED]}/cancel").status == 405


def test_a_retry_without_redis_is_kept_for_the_sweeper(site: Site, scene: Scene, valkey: ValkeyServer) -> None:
    (id,) = scene.add(1, "digits")
    scene.store.cancel([id])
    valkey.kill()
    try:
        assert site.do(id, "retry").status == 303
        assert scene.store.get(id).state is JobState.QUEUED
        assert id in [routed_job.id for routed_job in scene.store.take_unsent("cpu", 1e6)]
        wait_until(lambda: "Redis does not answer" in site.text("/jobs"), "the page says that Redis is away")
    finally:
        valkey.start()
    wait_until(lambda: "Redis does not answer" not in site.text("/jobs"), "the page says so no more")


def test_below_a_prefix_every_link_stays_there(started: Dashboards, scene: Scene, valkey: ValkeyServer) -> None:
    site = Site(started.start(valkey.url, FOREBAY_DATABASE=scene.ledger.url, FLOWER_URL_PREFIX="team/forebay"))
    assert site.ask("/team/forebay/").headers["Location"] == "/team/forebay/overview"
    for path in every_page(scene):
        page = site.text(f"/team/forebay{path}")
        links = re.findall(r'(?:href|src|action)="(/[^"]*)"', page)
        assert links
        assert [link for link in links if not link.startswith("/team/forebay/")] == [], path
    assert site.ask("/team/forebay/assets/pages.js").status == 200


def test_without_a_ledger_the_pages_say_so_and_come_up_with_it(tmp_path: Path, broker: str) -> None:
    url = f"sqlite:///{tmp_path / 'later.db'}"
    with ExitStack() as stack:
        site = Site(Dashboards(tmp_path, stack).start(broker, FOREBAY_DATABASE=url))
        for path in OURS:
            assert "There is no ledger at" in site.text(path)
        assert "cannot be read now" in site.text(f"/jobs/{'0' * 32}")
        upgrade_once(url)
        wait_until(lambda: "There are no jobs yet." in site.text("/jobs"), "the list is there")
        wait_until(lambda: "There is no ledger" not in site.text("/overview"), "the overview is there")


@pytest.mark.postgres
def test_while_postgres_is_away_the_pages_show_what_they_know(
    own_postgres: PostgresServer, tmp_path: Path, broker: str
) -> None:
    with ExitStack() as stack:
        url = f"postgresql+psycopg{own_postgres.url.removeprefix('postgresql')}/postgres"
        scene = Scene(url, minutes=2)
        stack.callback(scene.close)
        site = Site(Dashboards(tmp_path, stack).start(broker, FOREBAY_DATABASE=url))
        job = f"/jobs/{scene.interesting[JobState.SUCCEEDED]}"
        before = ids_in(site.text("/jobs"))
        assert len(before) == 50
        assert site.text("/overview")
        assert site.text(job)
        own_postgres.stop()
        for path in ("/jobs", "/overview", job):
            wait_until(
                lambda path=path: "What you see was read" in site.text(path),
                f"{path} shows what it knows",
                interval=0.2,
            )
        assert ids_in(site.text("/jobs")) == before
        assert site.do(scene.interesting[JobState.QUEUED], "cancel").status == 503
        own_postgres.start()
        wait_until(lambda: "What you see was read" not in site.text("/jobs"), "the list is fresh again", interval=0.2)
        assert site.dashboard.said.count("event=ledger_unavailable") == 1
        assert "Traceback" not in site.dashboard.said
