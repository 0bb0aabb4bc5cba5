"""The list of training runs, one run's page, and runs compared."""

import json
import re
from html import unescape
from typing import Any

import pytest

from forebay.contract.job import JobKind, JobState
from support.dashboard import OPERATOR, VIEWER, Site, page_text
from support.dashboard_data import Scene, compare_path


def charts_of(page: str) -> list[dict[str, Any]]:
    found = re.search(r'id="curves" hidden data-series="([^"]+)"', page)
    assert found
    charts: list[dict[str, Any]] = json.loads(unescape(found[1]))
    return charts


def test_the_list_of_runs_shows_progress_and_best_values_and_filters(site: Site, scene: Scene) -> None:
    def listed(page: str) -> set[str]:
        return set(re.findall(r'id="run-([0-9a-f]{32})"', page))

    runs = scene.runs
    assert len(listed(site.text("/training"))) == 5
    assert listed(site.text("/training?state=succeeded")) == {runs["first"], runs["second"]}
    assert listed(site.text("/training?model=iris&state=failed")) == {runs["failed"]}
    assert "No training run matches this filter." in site.text("/training?model=digits")
    assert site.ask("/training?state=none").status == 400
    text = page_text(site.text("/training"))
    for words in ("120 of 200", "accuracy 0.9667 held out", "iris/2", "validation, step 120"):
        assert words in text, words
    page = site.text("/training")
    assert set(re.findall(r'name="run" value="([0-9a-f]{32})"', page)) == set(runs.values()), "what waits has no curves"


def test_a_run_shows_its_curves_data_checkpoints_and_what_became_of_the_alias(site: Site, scene: Scene) -> None:
    page = site.text(f"/training/{scene.runs['second']}")
    text = page_text(page)
    for words in (
        "Best accuracy 0.9667 on held-out rows", "Alias moved : @champion moved from iris/1: accuracy 0.9667 is better",
        "105 train, 15 validation, 30 test", "params.lr 0.03",
        "more, as they are by default", "2 rows with missing values", "200 10 12.25 KiB",
        "versicolor 0 9 1",
    ):  # fmt: skip
        assert words in text, words
    charts = {chart["title"]: chart for chart in charts_of(page)}
    assert list(charts) == ["loss", "accuracy", "lr", "rows/s"]
    assert [line["label"] for line in charts["loss"]["lines"]] == ["train", "validation"]
    assert charts["loss"]["steps"] == list(range(10, 201, 10))
    assert charts["accuracy"]["lines"][0]["style"] == charts["loss"]["lines"][1]["style"]
    assert f'href="/training/{scene.runs["second"]}"' in site.text(f"/jobs/{scene.runs['second']}")
    running = page_text(site.text(f"/training/{scene.runs['running']}"))
    assert "Time left about 8.8 s" in running
    waiting = next(job.id for job in scene.store.queries.find(kind=JobKind.TRAIN, state=[JobState.QUEUED]))
    assert "Waiting in queue train for a worker." in page_text(site.text(f"/training/{waiting}"))
    assert site.ask(f"/training/{scene.interesting[JobState.SUCCEEDED]}").status == 404


def test_compared_runs_show_what_differs(site: Site, scene: Scene) -> None:
    page = site.text(compare_path(scene, "first", "second", "running"))
    text, same = page_text(page).split("Identical in all runs")
    for words in ("params.lr 0.01 0.03 0.02", "accuracy held out 0.9333 0.9667 –", "params.hidden 16 32 64"):
        assert words in text, words
    assert "params.epochs" not in text.partition("Differences")[2]
    assert "params.epochs 10" in same
    charts = charts_of(page)
    assert [chart["title"] for chart in charts][:2] == ["loss, validation", "loss, train"]
    assert all([line["label"] for line in chart["lines"]] == ["A", "B", "C"] for chart in charts)


@pytest.mark.parametrize("names", [(), ("first",), ("first", "first")])
def test_fewer_than_two_runs_are_not_compared(site: Site, scene: Scene, names: tuple[str, ...]) -> None:
    reply = site.ask(compare_path(scene, *names))
    assert reply.status == 400
    assert "2 to 6 runs can be compared" in reply.text


def test_only_runs_that_have_started_are_compared(site: Site, scene: Scene) -> None:
    reply = site.ask(f"{compare_path(scene, 'first')}&run={scene.interesting[JobState.SUCCEEDED]}")
    assert reply.status == 400
    assert "is not a training job that has started" in reply.text
    assert site.ask("/training/compare?run=x&run=y").status == 400


def test_an_operator_cancels_a_run_on_its_page(guarded: Site, scene: Scene) -> None:
    (id,) = scene.add(1, "iris", kind=JobKind.TRAIN, queue="train", version=0)
    assert 'id="cancel"' in guarded.text(f"/training/{id}", **OPERATOR)
    assert 'id="cancel"' not in guarded.text(f"/training/{id}", **VIEWER)
    reply = guarded.act(id, "cancel", folder="training", **OPERATOR)
    assert (reply.status, reply.headers["Location"]) == (303, f"/training/{id}?notice=job_canceled")
    assert scene.store.queries.get(id).state is JobState.CANCELED
