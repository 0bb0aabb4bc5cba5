"""Our pages over HTTP: tabs, headers, escaping, prefixes, and what they show while the ledger is away."""

import re
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlencode

import pytest

from forebay.contract.job import JobState
from forebay.dashboard.pages.headers import HEADERS
from support.dashboard import Dashboards, Site, job_ids
from support.dashboard_data import Scene, page_paths
from support.ledgers import upgrade_once
from support.servers import PostgresServer, ValkeyServer
from support.waiting import wait_until

TABS = ("/overview", "/jobs", "/batches", "/training", "/models", "/devices")


def test_the_home_page_leads_to_the_overview(site: Site) -> None:
    reply = site.ask("/")
    assert (reply.status, reply.headers["Location"]) == (302, "/overview")


def test_every_page_of_ours_and_of_flowers_has_all_tabs(site: Site, scene: Scene) -> None:
    for path in (*page_paths(scene).values(), "/workers", "/tasks", "/broker"):
        page = site.text(path)
        for tab in (*TABS, "/workers", "/tasks", "/broker"):
            assert f'href="{tab}"' in page, (path, tab)


def test_our_pages_carry_their_headers_and_hold_no_script_or_style_within(site: Site, scene: Scene) -> None:
    for path in page_paths(scene).values():
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
    pages = {path: site.text(path) for path in (f"/jobs/{done}", f"/jobs/{failed}", "/models", "/models/digits/2")}
    running = scene.interesting[JobState.RUNNING]
    batch = pages["batch"] = site.text(f"/batches/{running}")
    pages["batches"] = site.text("/batches")
    pages |= {path: site.text(path) for path in page_paths(scene).values()}
    escaped = "&lt;script&gt;alert("
    for path in (page_paths(scene)[page] for page in ("run", "compare", "version")):
        assert escaped in pages[path], path
    assert "from step 70 on &lt;b&gt;&amp;" in pages[f"/training/{scene.runs['failed']}"]
    assert "too long: &lt;img src=x onerror=alert(2)&gt;" in batch
    assert "/data/out/&lt;script&gt;alert(" in batch
    assert "/data/out/&lt;script&gt;alert(" in pages["batches"]
    assert "<img" not in pages[f"/jobs/{done}"].replace('<img src="/static/favicon.ico', "")
    assert "&lt;img src=x onerror=alert(1)&gt;" in pages[f"/jobs/{done}"]
    assert "conv2 &lt;b&gt;&amp;" in pages[f"/jobs/{failed}"]
    assert "&lt;script&gt;alert(&#x27;user&#x27;)&lt;/script&gt;" in pages["/models/digits/2"].replace(
        "&#39;", "&#x27;"
    )
    assert all("<script>alert" not in page for page in pages.values())


def test_query_parameters_are_shown_as_text(site: Site, scene: Scene) -> None:
    evil = '"><script>alert(1)</script>'
    for field in ("queue", "worker", "metadata", "model", "id", "state", "since"):
        page = site.ask(f"/jobs?{urlencode({field: evil})}").text
        assert "<script>alert" not in page, field
    assert "<script>alert" not in site.text(f"/models?{urlencode({'name': evil})}")
    assert "<script>alert" not in site.ask(f"/batches?{urlencode({'model': evil, 'state': evil})}").text
    batch = scene.interesting[JobState.RUNNING]
    assert "<script>alert" not in site.text(f"/batches/{batch}?{urlencode({'shards': evil, 'notice': evil})}")


def test_pages_bear_forebays_name_and_what_is_missing_is_a_page_too(site: Site) -> None:
    for path in ("/overview", "/workers", "/tasks", "/broker", "/nowhere"):
        page = site.ask(path).text
        assert "<span>Forebay</span>" in page, path
        assert "<span>Flower</span>" not in page, path
        assert re.search(r"<title>[^<]*Forebay</title>", page), path
    missing = site.ask(f"/jobs/{'0' * 32}")
    assert (missing.status, "Page not found" in missing.text) == (404, True)
    assert "no job has the id" in missing.text
    assert 'id="to-overview"' in missing.text


def test_a_fragment_is_the_changing_part_alone(site: Site) -> None:
    fragment = site.text("/jobs?fragment=1&state=failed")
    assert "<html" not in fragment
    assert job_ids(fragment) == job_ids(site.text("/jobs?state=failed"))


@pytest.mark.parametrize("path", ["/", "/overview", "/jobs", "/workers", "/tasks", "/metrics", "/static/js/flower.js"])
def test_a_name_that_points_here_is_no_way_in(site: Site, path: str) -> None:
    reply = site.ask(path, Host="evil.example")
    assert reply.status == 403
    assert "not a name of this machine" in reply.text


def test_below_a_prefix_every_link_stays_there(dashboards: Dashboards, scene: Scene, valkey: ValkeyServer) -> None:
    site = Site(dashboards.start(valkey.url, FOREBAY_DATABASE=scene.ledger.url, FLOWER_URL_PREFIX="team/forebay"))
    assert site.ask("/team/forebay/").headers["Location"] == "/team/forebay/overview"
    for path in page_paths(scene).values():
        page = site.text(f"/team/forebay{path}")
        links = re.findall(r'(?:href|src|action)="(/[^"]*)"', page)
        assert links
        assert [link for link in links if not link.startswith("/team/forebay/")] == [], path
    assert site.ask("/team/forebay/assets/pages.js").status == 200


def test_without_a_ledger_the_pages_say_so_and_come_up_with_it(tmp_path: Path, broker: str) -> None:
    url = f"sqlite:///{tmp_path / 'later.db'}"
    with ExitStack() as stack:
        site = Site(Dashboards(tmp_path, stack).start(broker, FOREBAY_DATABASE=url))
        for path in TABS:
            assert "There is no ledger at" in site.text(path)
        assert "cannot be read right now" in site.text(f"/jobs/{'0' * 32}")
        upgrade_once(url)
        wait_until(lambda: "There are no jobs yet." in site.text("/jobs"), "the list is there")
        wait_until(lambda: "There is no ledger" not in site.text("/overview"), "the overview is there")


@pytest.mark.postgres
def test_while_postgres_is_away_the_pages_show_the_last_data_they_read(
    own_postgres: PostgresServer, tmp_path: Path, broker: str
) -> None:
    with ExitStack() as stack:
        url = f"postgresql+psycopg{own_postgres.url.removeprefix('postgresql')}/postgres"
        scene = Scene(url, minutes=2)
        stack.callback(scene.close)
        site = Site(Dashboards(tmp_path, stack).start(broker, FOREBAY_DATABASE=url))
        job = f"/jobs/{scene.interesting[JobState.SUCCEEDED]}"
        before = job_ids(site.text("/jobs"))
        assert len(before) == 50
        assert site.text("/overview")
        assert site.text(job)
        own_postgres.stop()
        for path in ("/jobs", "/overview", job):
            wait_until(
                lambda path=path: "This page shows data read" in site.text(path),
                f"{path} shows what it knows",
                interval=0.2,
            )
        assert job_ids(site.text("/jobs")) == before
        assert site.act(scene.interesting[JobState.QUEUED], "cancel").status == 503
        own_postgres.start()
        wait_until(
            lambda: "This page shows data read" not in site.text("/jobs"), "the list is fresh again", interval=0.2
        )
        assert site.dashboard.output.count("event=ledger_unavailable") == 1
        assert "Traceback" not in site.dashboard.output
