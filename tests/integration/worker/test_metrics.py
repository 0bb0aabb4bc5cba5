"""What a real worker and a real dashboard show on /metrics, /healthz and /readyz, in good days and bad."""

import base64
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from forebay import JobFailed, as_completed
from forebay.contract.metrics.declared import LEDGER, PREFIX, WORKER
from support.servers import ValkeyServer, free_port
from support.waiting import wait_until
from support.worker_stack import WorkerStack

LOGIN = {"Authorization": "Basic " + base64.b64encode(b"u:p").decode()}
COUNTED = ("child_deaths_total", "jobs_finished_total", "batch_rows_sum", "model_evictions_total", "pool_tasks_total")
Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """The status and the body of an answer."""
    request = urllib.request.Request(url, headers=headers or {})  # noqa: S310 - always http
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(text: str) -> Samples:
    """Every sample of ours by name and labels."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            if one.name.startswith(PREFIX):
                found.setdefault(one.name.removeprefix(PREFIX), {})[tuple(sorted(one.labels.items()))] = one.value
    return found


def total(found: Samples, name: str, **labels: str) -> float:
    """The sum over the series with these labels."""
    return sum(value for have, value in found.get(name, {}).items() if labels.items() <= dict(have).items())


@contextmanager
def dashboard(folder: Path, broker: str, database: str, **environment: str) -> Iterator[str]:
    """The address of a dashboard process."""
    log = folder / "dashboard.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FLOWER_", "FOREBAY_"))}
    ours = {"FOREBAY_HOME": str(folder), "FOREBAY_BROKER": broker, "FOREBAY_DATABASE": database, "FOREBAY_DASHBOARD_PORT": "0",
            "FOREBAY_HEARTBEAT_S": "0.5"}  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "forebay.dashboard"],
            cwd=folder, env=inherited | ours | environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        said = wait_until(
            lambda: [line for line in log.read_text().splitlines() if "dashboard_ready" in line], "it listens"
        )
        yield said[0].partition("url=")[2].strip('"').partition("/?token=")[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    stack = open_stack(METRICS_PORT=str(free_port()), MODEL_CACHE_BYTES="1500")
    stack.worker().ready()
    return stack


@pytest.fixture(scope="module")
def worker(stack: WorkerStack) -> str:
    """The address of the worker's own pages."""
    return f"http://127.0.0.1:{stack.settings.metrics_port}"


def test_a_worker_and_the_dashboard_count_what_happened(stack: WorkerStack, worker: str, tmp_path: Path) -> None:
    client = stack.client
    good = client.predict_many(stack.model("Doubler"), [*range(9), -1])
    texts = client.predict_many(stack.model("Lengths", max_batch_size=4), ["a b c", "a", "a b", "a b c d"])
    for name in ("heavy-1", "heavy-2", "heavy-1"):
        client.predict(stack.model("Heavy", name), 1).result(120)
    wide = client.predict_many(stack.model("Narrow", max_batch_size=64), [*range(64)])
    broken = client.predict(stack.model("Broken"), 1)
    for job in as_completed([*good, *texts, *wide, broken], 120):
        assert job.done()
    killer = client.predict(stack.model("Recorder"), {"n": 1, "kill": True}, max_attempts=2)
    with pytest.raises(JobFailed, match="WorkerLost"):
        killer.result(120)

    def counted() -> Samples | None:
        found = samples(get(f"{worker}/metrics")[1])
        return found if total(found, "child_deaths_total") == 2 else None

    own = wait_until(counted, "the worker has counted both deaths")
    assert total(own, "jobs_finished_total", model="doubler", kind="predict", state="succeeded") == 9
    assert total(own, "jobs_finished_total", model="doubler", state="failed") == 1
    assert (
        total(own, "job_wait_seconds_count", model="doubler")
        == total(own, "job_run_seconds_count", model="doubler")
        == 10
    )
    assert 0 <= total(own, "job_wait_seconds_sum", model="doubler") < 600
    assert total(own, "batch_rows_sum", model="doubler") == 10
    assert total(own, "batch_tokens_total", model="lengths") == 10
    assert total(own, "batch_padding_ratio_count", model="lengths") >= 1
    assert total(own, "out_of_memory_total", model="narrow") >= 1
    assert total(own, "model_loads_total", model="broken", outcome="failed") >= 1
    assert total(own, "model_evictions_total", model="heavy-1") >= 1
    assert total(own, "model_load_seconds_count", model="heavy-2") >= 1
    assert total(own, "pool_tasks_total", outcome="lost") == 2
    assert total(own, "device_memory_total_bytes") > total(own, "device_memory_used_bytes") > 0

    events = [(event.event, event.attempt, "signal 9" in event.message) for event in killer.history()]
    assert events == [
        ("queued", None, False), ("claimed", 1, False), ("lost", 1, True), ("queued", None, False), ("claimed", 2, False),
        ("failed", 2, True),
    ]  # fmt: skip

    with dashboard(tmp_path, stack.settings.broker, stack.settings.database) as address:
        wait_until(lambda: get(f"{address}/readyz") == (200, "ready\n"), "the dashboard is ready")

        def written() -> str | None:
            text = get(f"{address}/metrics")[1]
            here, there = samples(get(f"{worker}/metrics")[1]), samples(text)
            return text if all(total(there, name) == total(here, name) for name in COUNTED) else None

        text = wait_until(written, "the heartbeat has brought it to the ledger")
        shown = samples(text)
        assert "flower_" in text
        assert total(shown, "jobs", state="succeeded") == 9 + 4 + 3 + 64
        assert total(shown, "jobs", state="failed") == 3
        assert total(shown, "queue_workers", queue="cpu") == total(shown, "worker_up", worker="w1@test") == 1
        assert total(shown, "queue_backlog_seconds", queue="cpu") == 0
        families = {family.name for family in text_string_to_metric_families(text)}
        assert {PREFIX + name.removesuffix("_total") for name in (*WORKER, *LEDGER)} <= families
        of_runs = {name for name in LEDGER if name.startswith(("training_", "model_drift"))}  # none here
        assert {*LEDGER} - of_runs - {"ledger_up"} <= set(shown)
        assert set(shown) <= {*LEDGER, *WORKER, *(f"{n}_{part}" for n in WORKER for part in ("bucket", "sum", "count"))}


def test_a_backlog_shows_with_its_age_and_an_estimate_of_the_work(stack: WorkerStack, tmp_path: Path) -> None:
    model = stack.model("Recorder")
    stack.hold()
    jobs = stack.client.predict_many(model, [{"n": n} for n in range(2)])
    wait_until(lambda: stack.states().get("running"), "a job runs")
    late = [stack.client.predict(model, {"n": n}) for n in range(2, 6)]
    try:
        with dashboard(tmp_path, stack.settings.broker, stack.settings.database) as address:

            def shown() -> Samples | None:
                found = samples(get(f"{address}/metrics")[1])
                return found if total(found, "queue_backlog_seconds", queue="cpu") > 0 else None

            found = wait_until(shown, "the backlog shows")
            assert total(found, "queue_jobs", queue="cpu", state="queued") == 4
            assert total(found, "queue_jobs", queue="cpu", state="running") == 2
            assert total(found, "queue_work_seconds", queue="cpu") > 0
    finally:
        stack.go_on()
    assert [job.result(120) for job in [*jobs, *late]] == [*range(6)]


def test_without_redis_a_worker_is_well_but_not_ready_and_counts_the_outage(
    stack: WorkerStack, worker: str, server: ValkeyServer
) -> None:
    wait_until(lambda: get(f"{worker}/readyz") == (200, "ready\n"), "it is ready")
    before = total(samples(get(f"{worker}/metrics")[1]), "broker_outages_total")
    server.kill()
    status, said = wait_until(lambda: (found := get(f"{worker}/readyz"))[0] == 503 and found, "it is not ready")
    assert (status, "Redis does not answer" in said) == (503, True)
    assert get(f"{worker}/healthz") == (200, "ok\n")
    server.start()
    wait_until(lambda: get(f"{worker}/readyz")[0] == 200, "it is ready again")
    wait_until(
        lambda: total(samples(get(f"{worker}/metrics")[1]), "broker_outages_total") > before, "the outage is counted"
    )
    assert get(f"{worker}/jobs")[0] == 404


def test_a_port_that_is_taken_is_named(stack: WorkerStack, tmp_path: Path) -> None:
    second = stack.worker("w2")
    assert second.process.wait(120) == 1
    assert f"cannot listen on 127.0.0.1:{stack.settings.metrics_port}" in second.said()
    assert "Traceback" not in second.said()


def test_only_healthz_is_open_where_a_login_is_set(stack: WorkerStack, tmp_path: Path) -> None:
    with dashboard(tmp_path, stack.settings.broker, stack.settings.database, FLOWER_BASIC_AUTH="u:p") as address:
        assert get(f"{address}/healthz") == (200, "ok\n")
        assert [get(f"{address}{path}")[0] for path in ("/readyz", "/metrics")] == [401, 401]
        assert get(f"{address}/metrics", LOGIN)[0] == 200


def test_a_dashboard_without_ledger_or_redis_lives_and_says_what_is_missing(tmp_path: Path) -> None:
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    with dashboard(tmp_path, nobody, f"sqlite:///{tmp_path / 'none.db'}") as address:
        assert get(f"{address}/healthz") == (200, "ok\n")
        status, said = get(f"{address}/readyz")
        assert status == 503
        assert "queue: Redis does not answer" in said
        assert "ledger: there is no ledger" in said
        assert total(samples(get(f"{address}/metrics")[1]), "ledger_up") == 0
