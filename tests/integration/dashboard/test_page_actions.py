"""Cancel and retry on the pages: who may, what is refused, and what happens without Redis."""

import pytest
import redis

from forebay.contract.job import JobState
from support.dashboard import OPERATOR, VIEWER, Site
from support.dashboard_data import Scene
from support.servers import ValkeyServer
from support.waiting import wait_until


def test_only_operators_see_buttons(guarded: Site, scene: Scene) -> None:
    for state, button in ((JobState.QUEUED, 'id="cancel"'), (JobState.FAILED, 'id="retry"')):
        path = f"/jobs/{scene.interesting[state]}"
        assert button in guarded.text(path, **OPERATOR)
        looked_on = guarded.text(path, **VIEWER)
        assert button not in looked_on
        assert "<dialog" not in looked_on


def test_an_operator_cancels_and_retries(guarded: Site, scene: Scene, valkey: ValkeyServer) -> None:
    (id,) = scene.add(1, "digits")
    reply = guarded.act(id, "cancel", **OPERATOR)
    assert (reply.status, reply.headers["Location"]) == (303, f"/jobs/{id}?notice=job_canceled")
    assert scene.store.queries.get(id).state is JobState.CANCELED
    assert "The job was canceled." in guarded.text(reply.headers["Location"], **OPERATOR)
    late = guarded.act(id, "cancel", **OPERATOR)
    assert late.headers["Location"].endswith("?notice=job_unchanged")
    reply = guarded.act(id, "retry", **OPERATOR)
    assert reply.headers["Location"].endswith("?notice=job_retried")
    assert scene.store.queries.get(id).state is JobState.QUEUED
    with redis.Redis.from_url(valkey.url) as client:
        assert sum(client.llen(f"cpu{step}") for step in ("", ":3", ":6", ":9")) == 1
    logged = [line for line in guarded.dashboard.output.splitlines() if id in line and "level=info" in line]
    assert ["event=job_canceled" in logged[0], "event=job_retried" in logged[1]] == [True, True]
    assert all("user=ada" in line for line in logged)


def test_a_running_job_is_asked_to_stop_once(guarded: Site, scene: Scene) -> None:
    (id,) = scene.add(1, "digits")
    scene.store.claim([id], "cpu@birch", 30)
    reply = guarded.act(id, "cancel", **OPERATOR)
    assert reply.headers["Location"].endswith("?notice=job_cancel_requested")
    assert scene.store.queries.get(id).cancel_requested_at is not None
    page = guarded.text(reply.headers["Location"], **OPERATOR)
    assert "was asked to stop" in page
    assert "Cancel requested" in page
    assert 'id="cancel"' not in page


def test_a_viewer_may_not_change_jobs(guarded: Site, scene: Scene) -> None:
    assert guarded.act(scene.interesting[JobState.QUEUED], "cancel", **VIEWER).status == 403
    assert guarded.act(scene.interesting[JobState.FAILED], "retry", **VIEWER).status == 403
    assert scene.store.queries.get(scene.interesting[JobState.QUEUED]).state is JobState.QUEUED


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
    reply = (guarded if behind_a_login else site).act(id, "cancel", **how, **login)  # type: ignore[arg-type]
    assert reply.status == status
    assert scene.store.queries.get(id).state is JobState.QUEUED


def test_a_get_changes_nothing(site: Site, scene: Scene) -> None:
    assert site.ask(f"/jobs/{scene.interesting[JobState.QUEUED]}/cancel").status == 405


def test_a_retry_without_redis_is_kept_for_the_sweeper(site: Site, scene: Scene, valkey: ValkeyServer) -> None:
    (id,) = scene.add(1, "digits")
    scene.store.cancel([id])
    valkey.kill()
    try:
        assert site.act(id, "retry").status == 303
        assert scene.store.queries.get(id).state is JobState.QUEUED
        assert id in [routed_job.id for routed_job in scene.store.sweeps.take_unsent("cpu", 1e6)]
        wait_until(lambda: "Redis does not answer" in site.text("/jobs"), "the page says that Redis is away")
    finally:
        valkey.start()
    wait_until(lambda: "Redis does not answer" not in site.text("/jobs"), "the page says so no more")
