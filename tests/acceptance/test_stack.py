"""`forebay up`, `status`, `doctor` and `down` as a user runs them, and what is left of the stack's processes."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from forebay import JobState
from support.digits import images
from support.user import FOREBAY, TIMEOUT_S, User, alive, end, family, refusal, running
from support.waiting import wait_until

QUEUES = '{"cpu": {"cpu": 8}, "later": {"cpu": 16}}'


@pytest.fixture(scope="module")
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, taken: int) -> Iterator[User]:
    """Somebody whose stack wants a dashboard port that is taken, and leaves the queue `later` alone."""
    variables = {"FOREBAY_DASHBOARD_PORT": str(taken), "FOREBAY_QUEUES": QUEUES}
    user = User(tmp_path_factory.mktemp("stack"), variables)
    with user.up("--queues", "cpu"):
        yield user


def worker_pids(user: User) -> set[int]:
    """The processes that the worker part consists of: supervisor, worker, children."""
    return {process.pid for process in family(user.stack()["processes"]["worker"])}


def test_the_forebay_command_is_installed_beside_the_interpreter() -> None:
    command = shutil.which("forebay", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip(f"forebay is not installed for {sys.executable}: there is no console script beside it")
    shown = [
        subprocess.run([*program, "--help"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
        for program in ([command], FOREBAY)
    ]
    assert shown[0] == shown[1]
    assert "Usage: forebay" in shown[0]


def test_a_detached_stack_is_ready_when_up_returns(user):
    status = user.json("status")
    assert status["home"] == str(user.home)
    assert user.home.stat().st_mode & 0o077 == 0, "other users may enter the home"
    assert status["stack"]["ready"] is True
    processes = status["stack"]["processes"]
    assert set(processes) == {"queue", "worker", "api", "dashboard"}
    assert all(psutil.pid_exists(pid) for pid in processes.values())
    assert [worker["queues"] for worker in status["workers"]] == [["cpu"]]
    text = user.ok("status")
    assert all(f"{name} (pid {pid})" in text for name, pid in processes.items())


def test_doctor_finds_everything_that_is_needed(user):
    found = {finding["what"]: finding for finding in user.json("doctor")}
    assert {"python", "torch", "flower", "gpu", "queue", "ledger", "blobs", "workers"} <= set(found)
    assert [what for what, finding in found.items() if not (finding["ok"] or finding["optional"])] == []
    assert all(finding["ok"] or finding["remedy"] for finding in found.values())
    assert user.json("doctor", "--worker")[1]["ok"] is True


def test_a_dashboard_whose_port_is_taken_chooses_another_one(user, taken):
    address = user.stack()["dashboard"]
    assert urlsplit(address).hostname == "127.0.0.1"
    assert urlsplit(address).port != taken
    wait_until(lambda: user.run("doctor", "--url", address).returncode == 0, f"{address} answers", TIMEOUT_S)
    assert address in user.ok("status")
    assert "?token=" in address
    assert user.run("doctor", "--url", address.partition("?")[0]).returncode == 1, "not without the token"


def test_up_where_a_stack_runs_says_so_and_gives_its_addresses(user):
    before = user.stack()
    for done in user.together(["up"], ["up", "--detach"]):
        assert done.returncode == 0
        assert "it runs already" in done.stderr
        assert before["dashboard"] in done.stdout
    assert user.stack() == before


def test_logs_are_printed_one_or_all(user):
    assert "child_ready" in user.ok("logs", "worker", "-n", "1000")
    assert {line.split()[0] for line in user.ok("logs", "-n", "3").splitlines()} >= {"worker", "valkey"}
    assert "there are api, dashboard, up, worker, valkey" in refusal(user.run("logs", "workers"))


def test_the_password_is_for_this_users_eyes_only(user):
    password = urlsplit(user.stack()["broker"]).password
    assert password is not None
    assert len(password) >= 20
    for path, mode in ((user.home / "stack.json", 0o600), (user.home / "valkey", 0o700)):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path
    listed = "\n".join(" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))  # as `ps` does
    assert f"up --home {user.home}" in listed
    told = [done.stdout for done in user.together(["status"], ["status", "--json"], ["doctor"], ["queues"])]
    logs = [path.read_text(errors="replace") for path in (user.home / "logs").iterdir()]
    assert [text for text in [listed, *told, *logs] if password in text] == []


@pytest.mark.parametrize("part", ["queue", "dashboard", "api", "worker"])
def test_a_killed_part_comes_back_and_leaves_nothing_behind(user, part):
    before = user.stack()
    everything = {p.pid: p for p in user.marked()}
    ended = [everything[pid] for pid in (worker_pids(user) if part == "worker" else [before["processes"][part]])]
    os.kill(before["processes"][part], signal.SIGKILL)
    wait_until(lambda: user.stack()["processes"].get(part) != before["processes"][part], f"{part} is back", TIMEOUT_S)
    wait_until(lambda: not alive(ended), f"what was left of the {part} has ended", TIMEOUT_S)
    after = user.stack()
    assert {name for name, pid in before["processes"].items() if after["processes"].get(name) != pid} == {part}
    assert after["broker"] == before["broker"], "who knew the queue's address finds it there again"
    if part in ("api", "dashboard"):
        url = after[part] if part == "dashboard" else f"{after[part]}/readyz"
        wait_until(lambda: user.run("doctor", "--url", url).returncode == 0, "it answers", TIMEOUT_S)


def test_jobs_succeed_after_every_part_was_killed(user, digits_pt2):
    with user.client() as client:
        model = client.models.register("digits", digits_pt2).ref
        jobs = client.predict_many(model, images(20), queue="cpu")
        assert [job.result(TIMEOUT_S).shape for job in jobs] == [(10,)] * 20


def test_down_ends_everything_and_waiting_jobs_run_in_the_next_stack(user):
    """The last test of this stack: it stops it, and starts another in the same home in the foreground."""
    with user.client() as client:
        ids = [job.id for job in client.predict_many("digits", images(20), queue="later")]
    before = {process.pid: process for process in [*family(user.stack()["pid"]), *user.marked()]}
    assert len(before) >= 6, "the stack itself, queue, supervisor, worker, its child, dashboard"
    assert f"stopped the stack in {user.home}" in user.ok("down")
    assert alive(list(before.values())) == []
    assert not (user.home / "stack.json").exists()
    again, status = user.together(["down"], ["status", "--json"])
    assert (again.returncode, again.stdout) == (0, f"no stack runs in {user.home}\n")
    assert json.loads(status.stdout)["stack"] is None

    with running(user, "up", "--no-dashboard", "--queues", "cpu,later") as process:
        wait_until(lambda: "dashboard left out" in user.said("up"), "the foreground stack is ready", TIMEOUT_S)
        with user.client() as client:
            assert [client.job(id).wait(TIMEOUT_S) for id in ids] == [True] * 20
            assert {client.job(id).state for id in ids} == {JobState.SUCCEEDED}
        interrupt_and_check(user, process, signal.SIGINT)


def test_a_stack_that_was_killed_is_cleared_away_by_the_next_one_which_may_be_stopped_while_it_starts(somebody):
    with running(somebody, "up", "--no-dashboard", "--no-api", "--queues", "cpu") as first:
        wait_until((somebody.home / "stack.json").exists, "the stack has begun", TIMEOUT_S)
        wait_until(lambda: set(somebody.stack()["processes"]) == {"queue", "worker"}, "its parts run", TIMEOUT_S)
        first.kill()
        first.wait(120)
        orphans = somebody.marked()
        try:
            assert len(alive(orphans)) >= 2, "nothing tells them that their parent was killed"
            assert somebody.json("status")["stack"] is None
            with running(somebody, "up", "--no-dashboard", "--no-api", "--queues", "cpu") as second:
                wait_until(lambda: not alive(orphans), "the next stack has ended them", TIMEOUT_S)
                wait_until(lambda: _runs(somebody, second), "the next stack has begun", TIMEOUT_S)
                interrupt_and_check(somebody, second, signal.SIGTERM)
        finally:
            end(orphans)


def test_on_a_machine_where_nothing_runs_every_command_says_what_to_do(somebody):
    status, down, asked, missing = somebody.together(["status"], ["down"], ["predict", "digits", "1"], ["doctor"])
    assert [done.returncode for done in (status, down, asked, missing)] == [0, 0, 1, 1]
    assert f"none runs in {somebody.home}" in status.stdout
    assert f"no stack runs in {somebody.home}" in down.stdout
    assert asked.stderr.count("\n") == 1
    assert "start the stack with `forebay up`" in asked.stderr
    assert "forebay up" in missing.stdout
    assert not (somebody.home / "ledger.db").exists()


def test_an_address_that_does_not_answer_is_a_finding_and_no_traceback(somebody):
    asked = [("doctor", "--url", url) for url in ("http://[::", "ftp://x", "http://127.0.0.1:1/", "no url")]
    assert [done.returncode for done in somebody.together(*asked)] == [1] * 4


def interrupt_and_check(user: User, process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    everything = [*family(process.pid), *user.marked()]
    process.send_signal(how)
    assert process.wait(TIMEOUT_S) == 0, user.said("up")
    assert alive(everything) == []
    assert "Traceback" not in user.said("up")


def _runs(user: User, process: subprocess.Popen[bytes]) -> bool:
    return (user.home / "stack.json").exists() and user.stack()["pid"] == process.pid
