"""The list of batches, and one batch's page."""

import re
from html import unescape

from sqlalchemy import text

from forebay.contract.job import JobKind, JobState
from support.batches import MadeBatch
from support.dashboard import OPERATOR, VIEWER, Site, job_ids, page_text
from support.dashboard_data import Scene
from support.waiting import wait_until


def test_a_batch_leads_to_its_jobs_and_they_lead_back(site: Site, scene: Scene) -> None:
    batch = scene.interesting[JobState.RUNNING]
    assert f'href="/jobs?parent={batch}&amp;state=succeeded"' in site.text(f"/jobs/{batch}")
    shards = job_ids(site.text(f"/jobs?parent={batch}&state=succeeded"))
    assert len(shards) == 7
    shard = site.text(f"/jobs/{shards[0]}")
    assert f'href="/jobs/{batch}"' in shard
    assert f'href="/batches/{batch}"' in shard
    assert f'href="/batches/{batch}"' in site.text(f"/jobs/{batch}")
    assert f'href="/jobs/{batch}"' in site.text(f"/batches/{batch}")
    assert len(job_ids(site.text(f"/jobs?kind={JobKind.SHARD}&parent={batch}"))) == 12


def test_the_list_of_batches_tells_how_far_each_is_and_filters(site: Site, scene: Scene) -> None:
    def listed(page: str) -> list[str]:
        return re.findall(r'id="batch-([0-9a-f]{32})"', page)

    everything = [job.id for job in scene.store.queries.find(kind=JobKind.BATCH)]
    assert listed(site.text("/batches")) == everything
    assert listed(site.text("/batches?state=succeeded")) == everything[2:]
    assert listed(site.text("/batches?model=minilm/1&state=running")) == everything[:2]
    assert listed(site.text(f"/batches?before={everything[0]}")) == everything[1:]
    assert "No batch matches this filter." in site.text("/batches?model=digits")
    assert "7,763 of 12,000" in page_text(site.text("/batches"))
    refused = site.ask("/batches?state=none")
    assert refused.status == 400
    assert "is not a state" in refused.text


def test_every_page_says_planning_while_the_rows_of_a_batch_are_not_all_planned(site: Site, scene: Scene) -> None:
    batch = scene.interesting[JobState.RUNNING]
    pages = ("/batches", "/jobs?kind=batch", f"/jobs/{batch}", f"/batches/{batch}")
    planning = re.compile(r"[\d,]+ of 12,000,( still)? planning")
    assert not [path for path in pages if planning.search(page_text(site.text(path)))]
    plan(scene, batch, False)
    try:
        for path in pages:
            found = wait_until(lambda path=path: planning.search(page_text(site.text(path))), f"{path} says so")
            assert found, path
        assert "Rows 12,000 so far, planning" in page_text(site.text(f"/jobs/{batch}"))
    finally:
        plan(scene, batch, True)


def plan(scene: Scene, batch: str, planned: bool) -> None:
    with scene.store.ledger.write() as connection:
        connection.execute(
            text("UPDATE batches SET planned = :planned WHERE id = :id"), {"planned": planned, "id": batch}
        )


def test_a_batch_shows_its_rows_its_shards_and_why_rows_failed(site: Site, scene: Scene) -> None:
    batch = scene.interesting[JobState.RUNNING]
    page = site.text(f"/batches/{batch}")
    told = page_text(page)
    for words in (
        "Rows done 7,738 of 12,000", "Rows failed 25", "Shards done 7 of 12", "InvalidInput 18 rows", "ValueError 4 rows",
        "row 218 column 'text': expected str, got 3.5", "gpu1@atlas 120 of 1,000", "Format parquet", "text = text",
    ):  # fmt: skip
        assert words in told, words
    squares = re.findall(r'class="fb-cell fb-cell-(\w+)" tabindex="(-?\d)" title="([^"]+)"', page)
    assert [style for style, _, _ in squares] == ["succeeded"] * 5 + ["errors"] * 2 + ["running"] * 2 + ["queued"] * 3
    assert [stop for _, stop, _ in squares] == ["0"] + ["-1"] * 11
    assert squares[5][2] == "Shard 6: succeeded; some rows failed"
    assert len(re.findall(r'id="shard-([0-9a-f]{32})"', page)) == 12


def test_very_many_shards_share_squares_that_lead_to_the_table(site: Site, scene: Scene) -> None:
    page = site.text(f"/batches/{scene.many_shards}")
    squares = re.findall(r'title="([^"]+)" aria-label="[^"]+" href="(\?shards=[^"]+)"', page)
    assert len(squares) == 300
    assert squares[0][0] == "Shards 1 to 3: 3 succeeded; 1 with rows that failed"
    assert "1 shard failed as a whole" in page_text(page)
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


def test_a_job_that_is_not_a_batch_has_no_batch_page(site: Site, scene: Scene) -> None:
    assert site.ask(f"/batches/{scene.interesting[JobState.SUCCEEDED]}").status == 404
    assert site.ask(f"/batches/{'0' * 32}").status == 404


def test_a_batch_that_no_worker_has_started_says_so(site: Site, scene: Scene) -> None:
    (id,) = scene.add(1, "minilm", kind=JobKind.BATCH)
    assert "Waiting in queue gpu for a worker to split it into shards." in page_text(site.text(f"/batches/{id}"))
    scene.store.cancel([id])
    ended = "It ended before it was split into shards."
    wait_until(lambda: ended in page_text(site.text(f"/batches/{id}")), "the page says that it has ended")


def test_an_operator_cancels_and_retries_a_batch_on_its_page(guarded: Site, scene: Scene) -> None:
    batch = MadeBatch(scene.ledger, 3)
    page = guarded.text(f"/batches/{batch.id}", **OPERATOR)
    assert 'id="cancel"' in page
    looked_on = guarded.text(f"/batches/{batch.id}", **VIEWER)
    assert 'id="cancel"' not in looked_on
    assert "<dialog" not in looked_on
    assert guarded.act(batch.id, "cancel", folder="batches", **VIEWER).status == 403
    reply = guarded.act(batch.id, "cancel", folder="batches", **OPERATOR)
    assert (reply.status, reply.headers["Location"]) == (303, f"/batches/{batch.id}?notice=job_canceled")
    assert scene.store.queries.get(batch.id).state is JobState.CANCELED
    assert {scene.store.queries.get(id).state for id in batch.shards} == {JobState.CANCELED}
    reply = guarded.act(batch.id, "retry", folder="batches", **OPERATOR)
    assert reply.headers["Location"].endswith("?notice=job_retried")
    assert scene.store.queries.get(batch.id).state is JobState.QUEUED
