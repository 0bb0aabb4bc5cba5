"""The list of jobs under its filters, and one job's page."""

import re
from html import unescape
from urllib.parse import urlencode

import pytest

from forebay.contract.generation import Choice, completion
from forebay.contract.job import JobKind, JobState, new_ids
from forebay.contract.wire import codec
from forebay.contract.wire.payload import pack_input
from forebay.storage.jobs.records import Finished, NewJob
from support.dashboard import Site, job_ids
from support.dashboard_data import USERS, Scene


def test_an_invalid_field_is_named_beside_the_form(site: Site) -> None:
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
        seen += job_ids(page)
        pages += 1
        assert pages < 100
        link = re.search(r'id="older" rel="next" href="([^"]+)"', page)
        path = unescape(link[1]) if link else ""
    fields = dict(pair.split("=") for pair in query.split("&"))
    jobs = scene.store.queries.find(limit=10_000)
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
    found = job_ids(page)
    assert found
    assert {scene.store.queries.get(id).metadata["user"] for id in found} == {USERS[2]}


def test_the_timeline_of_a_job_shows_the_attempt_that_was_lost(site: Site, scene: Scene) -> None:
    page = re.sub(r"<[^>]+>|\s+", " ", site.text(f"/jobs/{scene.interesting[JobState.FAILED]}"))
    order = [
        "Submitted",
        "Attempt 1 started",
        "on cpu@cedar",
        "Attempt 1 was lost",
        "signal 9",
        "Queued again",
        "Attempt 2 started",
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


def test_a_training_job_is_shown_by_its_models_name_alone(site: Site, scene: Scene) -> None:
    (id,) = new_ids(1)
    scene.store.add([NewJob(id, JobKind.TRAIN, "digits", 0, "train")])
    for path in (f"/jobs/{id}", "/jobs?kind=train"):
        page = site.text(path)
        assert ">digits<" in page
        assert "digits/0" not in page


@pytest.mark.parametrize("id", ["0" * 32, "x", "0" * 31])
def test_a_job_that_is_not_there_is_not_found(site: Site, id: str) -> None:
    assert site.ask(f"/jobs/{id}").status == 404


def test_a_job_for_text_shows_who_said_what_escaped_and_the_text(site: Site, scene: Scene) -> None:
    said = [{"role": "system", "content": "Be <b>brief</b>."}, {"role": "user", "content": "Why?\nNow."}]
    (id,) = scene.add(1, "minilm", input=pack_input([{"request": {"messages": said}}], batched=False))
    (job,) = scene.store.claim([id], "gpu0@atlas", 30)
    choice = Choice(text="Because <i>so</i>.", finish_reason="length")
    scene.store.finish([Finished(id, job.attempt, codec.encode(completion([choice], 5, 3)))])
    page = site.text(f"/jobs/{id}")
    for words in ("<dt>system</dt><dd class=\"fb-value\">Be &lt;b&gt;brief&lt;/b&gt;.</dd>", "Why?\nNow.</dd>",
                  "ended by length", "Because &lt;i&gt;so&lt;/i&gt;.</dd>"):  # fmt: skip
        assert words in page, words
