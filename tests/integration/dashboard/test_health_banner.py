"""What the Overview, `/readyz` and `forebay status` say while Redis or the ledger hangs, and while workers are frozen."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from forebay.cli.root import app
from support.dashboard import Dashboards, Site, page_text
from support.dashboard_data import Scene
from support.ledgers import upgrade_once
from support.servers import PostgresServer, ValkeyServer
from support.waiting import wait_until


def status(monkeypatch: pytest.MonkeyPatch, broker: str, database: str, *options: str) -> str:
    monkeypatch.setenv("FOREBAY_BROKER", broker)
    monkeypatch.setenv("FOREBAY_DATABASE", database)
    result = CliRunner().invoke(app, ["status", *options])
    assert result.exit_code == 0, result.output
    return result.stdout


@contextmanager
def frozen(pid: int | None) -> Iterator[None]:
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_frozen_redis_is_said_on_the_pages_and_readyz_is_503_in_time(
    site: Site, scene: Scene, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.beat()
    wait_until(lambda: site.ask("/readyz").status == 200, "it is ready")
    with frozen(valkey.pid):
        begun = time.monotonic()
        reply = site.ask("/readyz")
        assert (reply.status, reply.text) == (503, "queue: Redis hangs: it has not answered within 2 s\n")
        assert time.monotonic() - begun < 30
        for path in ("/overview", "/jobs"):
            page = page_text(site.text(path))
            assert "Redis hangs: it has not answered within 2 s." in page
            assert "kill -CONT PID" in page
        begun = time.monotonic()
        assert "Redis hangs" in status(monkeypatch, valkey.url, scene.ledger.url)
        assert time.monotonic() - begun < 60
    wait_until(lambda: site.ask("/readyz").status == 200, "it is ready again")
    assert "Redis hangs" not in site.text("/jobs")


def test_overview_and_status_name_silent_workers_queues_without_one_and_failures_by_type(
    dashboards: Dashboards, broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'scene.db'}"
    scene = Scene(url, minutes=5)
    scene.workers.remove("cpu@cedar")
    scene.clock.now -= 300
    for name in ("gpu0@atlas", "gpu1@atlas", "cpu@birch"):
        queue = "cpu" if name.startswith("cpu") else "gpu"
        scene.workers.heartbeat(name, name.partition("@")[2], queue, (queue,), scene.clock.now)
    scene.close()
    site = Site(dashboards.start(broker, FOREBAY_DATABASE=url))
    page = page_text(site.text("/overview"))
    said = status(monkeypatch, broker, url)
    for text in (page, said):
        assert "3 workers fell silent: cpu@birch for 5 min, gpu0@atlas for 5 min, gpu1@atlas for 5 min" in text
        assert "On atlas, birch look at" in text
        assert "jobs wait in queue gpu" in text
        assert "only gpu0@atlas, gpu1@atlas, silent." in text
        assert "RuntimeError" in text
        assert "The size of tensor a (224) must match" in text
        assert "at layer1.0.conv2" not in text
    health = json.loads(status(monkeypatch, broker, url, "--json"))["health"]
    assert [failure["type"] for failure in health["failures"]]
    assert all(problem["next_step"] for problem in health["problems"])


@pytest.mark.postgres
def test_readyz_is_503_in_time_while_the_ledger_hangs(
    own_postgres: PostgresServer, dashboards: Dashboards, broker: str
) -> None:
    url = f"postgresql+psycopg{own_postgres.url.removeprefix('postgresql')}/postgres"
    upgrade_once(url)
    site = Site(dashboards.start(broker, FOREBAY_DATABASE=url))
    wait_until(lambda: site.ask("/readyz").status == 200, "it is ready")
    with frozen(own_postgres.pid):
        backends = [int(pid) for pid in children(own_postgres.pid)]
        for pid in backends:
            os.kill(pid, signal.SIGSTOP)
        begun = time.monotonic()
        reply = site.ask("/readyz")
        assert (reply.status, reply.text) == (503, "ledger: the ledger has not answered within 3 s\n")
        assert time.monotonic() - begun < 30
        for pid in backends:
            os.kill(pid, signal.SIGCONT)


def children(pid: int | None) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
