"""Flower as `python -m forebay.dashboard` runs it, against a real Valkey: who may come in, what it shows, what it survives."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu.utils.uuid import uuid

from forebay.contract.errors import InvalidInput
from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import make_app
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import PREDICT_TASK, RoutedJob
from forebay.dashboard.flower.options import check_credentials
from support.dashboard import Dashboard, Dashboards, Site, basic_login
from support.servers import ValkeyServer, free_port
from support.waiting import wait_until

WORKER = "cpu@host-of-the-test"
PAGES = ("/", "/workers", "/tasks", "/broker")
OURS = ("/overview", "/jobs", "/batches", "/training", "/models", "/models/a/1", "/devices")
LOGIN = {"Authorization": basic_login("u:p")}


@pytest.fixture
def dashboard(dashboards: Dashboards, broker: str) -> Dashboard:
    return dashboards.start(broker)


@pytest.fixture
def producer(broker: str, tmp_path: Path) -> Iterator[Celery]:
    """The Celery app of whoever sends messages and events in a test."""
    app = make_app(Settings.load({"FOREBAY_BROKER": broker, "FOREBAY_HOME": str(tmp_path)}))
    try:
        yield app
    finally:
        app.pool.force_close_all(close_pool=False)


def await_listeners(server: ValkeyServer) -> None:
    """Until somebody has subscribed to events: those sent before are lost."""
    with redis.Redis.from_url(server.url) as client:
        wait_until(lambda: client.pubsub_numpat() > 0, "the dashboard listens for events")


def argsrepr_of(app: Celery, server: ValkeyServer, jobs: int) -> str:
    """What a message for so many jobs of digits/1 says of its arguments, sent as Forebay sends it."""
    routed_jobs = [RoutedJob(str(uuid()), "digits", 1, "cpu", 0) for _ in range(jobs)]
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.delete("cpu")
        Dispatcher(app).send_jobs(routed_jobs)
        message = client.lpop("cpu")
    assert isinstance(message, str)
    return str(json.loads(message)["headers"]["argsrepr"])


def publish_task(app: Celery, args: str, result: str) -> str:
    """The events of one message from receipt to success, as the strategy and Celery send them; the task's id."""
    task = str(uuid())
    with app.connection_for_write() as connection, app.events.Dispatcher(connection, hostname=WORKER) as events:
        events.send("worker-online", freq=2.0)
        events.send("worker-heartbeat", freq=2.0, active=1, processed=0, loadavg=[0.1, 0.1, 0.1])
        events.send(
            "task-received", uuid=task, name=PREDICT_TASK, args=args, kwargs="", root_id=task, parent_id=None,
            retries=0, eta=None, expires=None,
        )  # fmt: skip
        events.send("task-started", uuid=task)
        events.send("task-succeeded", uuid=task, result=result, runtime=0.25)
    return task


def test_the_pages_answer_on_loopback(dashboard: Dashboard) -> None:
    assert dashboard.url.startswith("http://127.0.0.1:")
    assert {path: dashboard.get(path)[0] for path in PAGES} == dict.fromkeys(PAGES, 200)
    assert dashboard.get("/healthcheck") == (200, "OK")


def test_without_a_login_the_token_lets_in_and_nothing_else_does(dashboard: Dashboard, tmp_path: Path) -> None:
    wrong = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": LOGIN["Authorization"]}, {"Cookie": "forebay_=x"}]
    job = "0" * 32
    for path in (
        *PAGES,
        *OURS,
        "/api/tasks",
        "/tasks/datatable",
        "/static/css/flower.css",
        f"/jobs/{job}",
        "/no-such-page",
    ):
        assert {dashboard.get(path, headers)[0] for headers in wrong} == {401}, path
        assert dashboard.get(f"{path}?token=wrong", {})[0] == 401, path
    for path in (f"/jobs/{job}/cancel", f"/jobs/{job}/retry", "/api/task/revoke/1", "/api/worker/shutdown/w"):
        forged = Site(dashboard).ask(path, "POST", "confirmed=yes", Authorization="", Cookie="_xsrf=x", X_Xsrftoken="x")
        assert forged.status == 401, path
    assert {dashboard.get(path, {})[0] for path in ("/healthz", "/metrics", "/healthcheck")} == {200}
    assert "there is no ledger" in dashboard.get("/readyz", {})[1]
    status, page = dashboard.get("/jobs", {"Accept": "text/html,*/*"})
    assert (status, page[:15]) == (401, "<!doctype html>")
    assert dashboard.get("/jobs", {"Accept": "application/json"})[1].startswith("open the address with ?token=")
    token = tmp_path / "dashboard-token"
    assert token.stat().st_mode & 0o077 == 0
    assert token.read_text() not in dashboard.get("/", {})[1]


def test_the_address_with_the_token_gives_a_cookie_that_outlives_a_restart(
    dashboards: Dashboards, broker: str, tmp_path: Path
) -> None:
    first = dashboards.start(broker)
    entered = Site(first).ask(first.address.removeprefix(first.url) + "&state=failed", Authorization="")
    assert (entered.status, entered.headers["Referrer-Policy"], entered.headers["Cache-Control"]) == (
        200,
        "no-referrer",
        "no-store",
    )
    assert 'content="0; url=/?state=failed"' in entered.text
    token = (tmp_path / "dashboard-token").read_text()
    assert token not in entered.text + entered.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(entered.headers["Set-Cookie"].split("; "))
    cookie = entered.headers["Set-Cookie"].partition(";")[0]
    assert first.get("/jobs", {"Cookie": cookie})[0] == 200
    assert token not in first.output.replace(first.address, ""), "a request's address is not logged with its token"
    assert first.end() == 0
    second = dashboards.start(broker)
    assert second.get("/workers", {"Cookie": cookie})[0] == 200


def test_a_token_that_others_could_have_read_is_replaced(dashboards: Dashboards, broker: str, tmp_path: Path) -> None:
    token = tmp_path / "dashboard-token"
    token.write_text("a" * 43)
    token.chmod(0o644)
    dashboard = dashboards.start(broker)
    assert dashboard.get("/jobs", {"Authorization": f"Bearer {'a' * 43}"})[0] == 401
    assert dashboard.get("/jobs")[0] == 200
    assert token.stat().st_mode & 0o077 == 0


def test_with_a_login_there_is_no_token(dashboards: Dashboards, broker: str, tmp_path: Path) -> None:
    (tmp_path / "dashboard-token").write_text("a" * 43)
    dashboard = dashboards.start(broker, FLOWER_BASIC_AUTH="u:p")
    assert dashboard.address == dashboard.url
    assert dashboard.get("/jobs?token=" + "a" * 43, {})[0] == 401
    assert not (tmp_path / "dashboard-token").exists()


def test_a_strict_policy_covers_flowers_pages_and_errors_too(dashboard: Dashboard) -> None:
    site = Site(dashboard)
    for path in (
        *PAGES[1:],
        *OURS,
        "/task/none",
        "/worker/none",
        "/healthcheck",
        "/static/css/flower.css",
        "/no-such-page",
    ):
        headers = site.ask(path).headers
        assert "script-src 'self'" in headers["Content-Security-Policy"], path
        assert not {"'unsafe-inline'", "'unsafe-eval'"} & set(headers["Content-Security-Policy"].split()), path
        assert headers["X-Content-Type-Options"] == "nosniff", path
    nonces = [re.findall(r"'nonce-([^']+)'", site.ask("/workers").headers["Content-Security-Policy"]) for _ in range(2)]
    assert [len(found) for found in nonces] == [1, 1]
    assert nonces[0] != nonces[1]


def test_the_pages_name_the_queues_and_hide_the_password(dashboard: Dashboard, valkey: ValkeyServer) -> None:
    _, page = dashboard.get("/broker")
    assert "<td>cpu</td>" in page
    assert "<td>gpu</td>" in page
    assert valkey.password not in page + dashboard.output


def test_without_a_login_the_api_stays_closed(dashboard: Dashboard) -> None:
    assert dashboard.get("/api/tasks")[0] == 401


def test_tasks_show_with_readable_names_and_arguments(
    dashboard: Dashboard, valkey: ValkeyServer, producer: Celery
) -> None:
    await_listeners(valkey)
    task = publish_task(producer, argsrepr_of(producer, valkey, 256), "256 succeeded, 0 failed, 0 not ours")
    wait_until(lambda: [row for row in dashboard.tasks() if row["state"] == "SUCCESS"], "the task has succeeded")

    (row,) = dashboard.tasks()
    shown = {name: row[name] for name in ("uuid", "name", "args", "kwargs", "result", "worker", "runtime")}
    assert shown == {
        "uuid": task, "name": "forebay.predict", "args": "digits/1, 256 jobs", "kwargs": "",
        "result": "256 succeeded, 0 failed, 0 not ours", "worker": WORKER, "runtime": 0.25,
    }  # fmt: skip
    _, tasks = dashboard.get("/tasks")
    assert all(f'data-column="{column}"' in tasks for column in ("name", "args", "state", "result", "worker"))
    status, page = dashboard.get(f"/task/{task}")
    assert status == 200
    assert "digits/1, 256 jobs" in page
    assert WORKER in dashboard.get("/workers")[1]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104 - refused
def test_other_machines_are_not_let_in_without_a_login(dashboards: Dashboards, broker: str, host: str) -> None:
    refused = dashboards.start(broker, FOREBAY_DASHBOARD_HOST=host, FLOWER_BASIC_AUTH="")
    assert refused.process.wait(120) == 1
    (line,) = refused.output.splitlines()
    assert "FLOWER_BASIC_AUTH=user:password" in line


def test_with_a_login_nobody_comes_in_without_it(dashboards: Dashboards, broker: str) -> None:
    dashboard = dashboards.start(broker, FOREBAY_DASHBOARD_HOST="0.0.0.0", FLOWER_BASIC_AUTH="u:p")  # noqa: S104
    wrong = {"Authorization": basic_login("u:q")}
    assert dashboard.url.startswith("http://127.0.0.1:")
    for path in (*PAGES, *OURS, "/api/tasks", "/metrics", "/healthcheck", "/static/css/flower.css", "/assets/pages.js"):
        assert [dashboard.get(path, headers)[0] for headers in ({}, wrong, LOGIN)] == [401, 401, 200], path
    job = "0" * 32
    for path in ("/no-such-page", "/training/compare", f"/jobs/{job}", f"/batches/{job}", f"/training/{job}"):
        assert dashboard.get(path)[0] == 401, path
    assert dashboard.get("/healthz")[0] == 200


def test_a_login_that_could_not_hold_is_refused_and_not_shown(dashboards: Dashboards, broker: str) -> None:
    refused = dashboards.start(broker, FLOWER_BASIC_AUTH="u:hunter2,q")
    assert refused.process.wait(120) == 1
    (line,) = refused.output.splitlines()
    assert "FLOWER_BASIC_AUTH must be user:password" in line
    assert "hunter2" not in line
    for given in (["hunter2"], ["hunter2:"], [":hunter2"], ["u:hunter2", "q"], ["u:hunter2ä"]):
        with pytest.raises(InvalidInput, match="must be user:password") as caught:
            check_credentials(given)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("FLOWER_PERSISTENT", "true", "FLOWER_PERSISTENT"),
        ("FLOWER_UNIX_SOCKET", "flower.sock", "FLOWER_UNIX_SOCKET"),
        ("FLOWER_MAX_TASKS", "many", "'many'"),
        ("FLOWER_CONF", "missing.py", "missing.py"),
        ("FLOWER_CERTFILE", "missing.pem", "certfile"),
    ],
)
def test_an_option_of_flowers_that_will_not_do_is_refused_in_one_line(
    dashboards: Dashboards, broker: str, variable: str, value: str, words: str
) -> None:
    refused = dashboards.start(broker, **{variable: value})
    assert refused.process.wait(120) == 1
    (line,) = refused.output.splitlines()
    assert words in line


def test_flowers_own_options_apply(dashboards: Dashboards, broker: str) -> None:
    dashboard = dashboards.start(broker, FLOWER_URL_PREFIX="flower", FLOWER_TASKS_COLUMNS="uuid,args")
    assert dashboard.url.endswith("/flower")
    _, page = dashboard.get("/tasks")
    assert 'data-column="args"' in page
    assert 'data-column="state"' not in page


def test_a_configuration_file_in_the_working_folder_is_not_run(
    dashboards: Dashboards, broker: str, tmp_path: Path
) -> None:
    (tmp_path / "flowerconfig.py").write_text("raise SystemExit(9)\n", encoding="utf-8")
    assert dashboards.start(broker).get("/")[0] == 200


def test_a_port_that_is_taken_is_named(dashboards: Dashboards, broker: str, valkey: ValkeyServer) -> None:
    refused = dashboards.start(broker, FOREBAY_DASHBOARD_PORT=str(valkey.port))
    assert refused.process.wait(120) == 1
    assert f"cannot listen on 127.0.0.1:{valkey.port}" in refused.output
    assert "Traceback" not in refused.output


def test_it_says_how_to_get_a_queue_when_there_is_none(dashboards: Dashboards) -> None:
    refused = dashboards.start("")
    assert refused.process.wait(120) == 1
    assert "forebay up" in refused.output


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_well_when_told_to(dashboard: Dashboard, how: signal.Signals) -> None:
    dashboard.await_event("broker_connected")
    assert dashboard.end(how) == 0
    assert "Traceback" not in dashboard.output


def test_it_comes_up_while_redis_is_down_and_says_so_once(dashboards: Dashboards) -> None:
    nobody = f"redis://:secret-of-the-test@127.0.0.1:{free_port()}/0"
    dashboard = dashboards.start(nobody, FOREBAY_LOG_LEVEL="debug")
    dashboard.await_event("broker_unreachable", times=3)
    assert {path: dashboard.get(path)[0] for path in (*PAGES, "/workers?refresh=1")} == dict.fromkeys(
        (*PAGES, "/workers?refresh=1"), 200
    )
    assert dashboard.get("/worker/unknown")[0] == 404
    assert dashboard.output.count("level=warning event=broker_unreachable") == 1
    assert dashboard.end() == 0
    assert "Traceback" not in dashboard.output
    assert "secret-of-the-test" not in dashboard.output


def test_it_shows_tasks_again_after_a_restart_of_redis(
    dashboard: Dashboard, valkey: ValkeyServer, producer: Celery
) -> None:
    await_listeners(valkey)
    before = publish_task(producer, "digits/1, 1 jobs", "1 succeeded")
    wait_until(lambda: [row for row in dashboard.tasks() if row["result"]], "the first task shows")
    valkey.kill()
    producer.pool.force_close_all(close_pool=False)
    dashboard.await_event("broker_unreachable")
    assert {path: dashboard.get(path)[0] for path in PAGES} == dict.fromkeys(PAGES, 200)
    valkey.start()
    dashboard.await_event("broker_connected", times=2)
    await_listeners(valkey)
    after = publish_task(producer, "digits/1, 2 jobs", "2 succeeded")
    wait_until(lambda: len([row for row in dashboard.tasks() if row["result"]]) == 2, "the second task shows")
    assert {row["uuid"] for row in dashboard.tasks()} == {before, after}
    assert dashboard.count("broker_unreachable") == 1
    assert "Traceback" not in dashboard.output


def test_a_strangers_message_on_the_event_channel_does_not_deafen_it(
    dashboard: Dashboard, valkey: ValkeyServer, producer: Celery
) -> None:
    await_listeners(valkey)
    with producer.connection_for_write() as connection, producer.events.Dispatcher(connection) as events:
        events.producer.publish({"no": "event"}, exchange=events.exchange, routing_key="x", declare=[events.exchange])
    dashboard.await_event("event_rejected")
    await_listeners(valkey)

    def shown() -> bool:
        publish_task(producer, "digits/1, 1 jobs", "1 succeeded")
        return bool(dashboard.tasks())

    wait_until(shown, "tasks show again", interval=0.2)
    assert "Traceback" not in dashboard.output


def test_a_forged_event_reaches_no_page_and_is_logged(
    dashboard: Dashboard, valkey: ValkeyServer, producer: Celery
) -> None:
    evil = "<img src=x onerror=alert(1)>"
    await_listeners(valkey)
    words = ("hostname", "timestamp", "clock", "active", "processed", "loadavg", "sw_ver", "pid", "freq")
    worker = {"type": "worker-heartbeat", "hostname": "cpu@forged", "timestamp": 1.0, "freq": 2.0}
    task = {"type": "task-received", "hostname": "cpu@forged", "timestamp": 1.0, "uuid": "1"}
    forged: list[Any] = [
        {}, [], evil, 7, {"type": 7}, {"type": "worker-" + evil, "hostname": "h", "timestamp": 1.0},
        *(worker | {name: evil} for name in words),
        worker | {"loadavg": [evil]}, worker | {"loadavg": [0.0] * 4}, worker | {"active": -1}, worker | {"clock": 10**30},
        *(task | {name: evil} for name in ("uuid", "name", "root_id", "eta", "runtime", "retries", "queue")),
        task | {"args": ["a"]}, task | {"result": "x" * 30_000}, {"type": "task-" + evil} | task | {"type": "task-" + evil},
    ]  # fmt: skip
    with producer.connection_for_write() as connection, producer.events.Dispatcher(connection) as events:
        for body in forged:
            events.producer.publish(body, exchange=events.exchange, routing_key="x", declare=[events.exchange])
        unknown = worker | {"hostname": "cpu@last", "task-succeeded": evil, "heartbeats": [evil], "status": evil}
        events.producer.publish(
            [*forged, unknown], exchange=events.exchange, routing_key="x", declare=[events.exchange]
        )
    wait_until(lambda: "cpu@last" in dashboard.get("/workers")[1], "an event after the forged ones has come")
    rows = json.loads(dashboard.get("/workers?json=1")[1])["data"]
    assert [row["hostname"] for row in rows] == ["cpu@last"]
    assert "<img" not in dashboard.get("/workers?json=1")[1] + dashboard.get("/metrics")[1]
    assert dashboard.tasks() == []
    assert dashboard.count("event_rejected") == 1, "a flood of them is no flood of lines"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_loopback_needs_no_login(host: str) -> None:
    from forebay.dashboard.flower.options import check_access

    check_access(host, authenticated=False)


@pytest.mark.parametrize("host", ["", "0", "0.0.0.0", "::", "::ffff:0.0.0.0", "192.0.2.1", "2001:db8::1"])  # noqa: S104
def test_every_other_address_needs_a_login(host: str) -> None:
    from forebay.dashboard.flower.options import check_access

    check_access(host, authenticated=True)
    with pytest.raises(InvalidInput, match="FLOWER_BASIC_AUTH=user:password"):
        check_access(host, authenticated=False)


@pytest.mark.parametrize("host", ["x" * 64, "127.0.0.1:80:"])
def test_a_host_that_is_no_address_is_named(host: str) -> None:
    from forebay.dashboard.flower.options import check_access

    with pytest.raises(InvalidInput, match="not an address to listen on"):
        check_access(host, authenticated=True)


def test_the_dashboard_imports_neither_worker_nor_torch() -> None:
    program = (
        "import sys, forebay.dashboard.flower.server\nprint({'torch', 'forebay.worker'}.intersection(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
