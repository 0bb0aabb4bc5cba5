"""`make chaos` as a developer runs it: short runs are sound on both databases, and nothing is left of them, nor after Ctrl-C."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from support.servers import find_postgres
from support.user import TIMEOUT_S, User, end
from support.waiting import wait_until

CHAOS = (sys.executable, "-m", "chaos")
SHORT = ("--jobs", "200", "--kinds", "predict,batch,evaluate", "--seconds", "6", "--seed", "3", "--verbose", "--json")
Done = subprocess.CompletedProcess[str]


class Trial(User):
    """Somebody whose temporary folders lie in one of their own, in which PostgreSQL's user may look around."""

    @property
    def temporary(self) -> Path:
        return Path(self.variables["TMPDIR"])

    def processes(self) -> list[psutil.Process]:
        """Everything that works in these folders, or was started with them: PostgreSQL writes over its environment."""
        return [p for p in psutil.process_iter() if p.pid != psutil.Process().pid and self._is_ours(p)]

    def _is_ours(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            inside = Path(process.cwd()).is_relative_to(self.temporary)
            return inside or process.environ().get("TMPDIR") == str(self.temporary)
        return False


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Trial]]:
    made = []
    for i in range(3):
        temporary = Path(tempfile.mkdtemp(prefix="forebay-test-"))
        temporary.chmod(0o711)
        made.append(Trial(tmp_path_factory.mktemp(f"trial{i}"), {"TMPDIR": str(temporary)}, CHAOS))
    try:
        yield made
    finally:
        for trial in made:
            end(trial.processes())
            shutil.rmtree(trial.temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def runs(trials: list[Trial]) -> Iterator[dict[str, Future[Done]]]:
    """Both runs, side by side: most of their time they wait for what they have broken."""
    databases = ["sqlite", *(["postgres"] if find_postgres() else [])]
    with ThreadPoolExecutor(2) as pool:
        yield {
            database: pool.submit(trial.run, *SHORT, "--database", database)
            for trial, database in zip(trials, databases, strict=False)
        }


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_nothing_is_lost_doubled_or_wrong_while_everything_breaks(database, runs, trials, request):
    if database == "postgres":
        request.getfixturevalue("pg_url")  # skips where there is no PostgreSQL, and fails in CI
    done = runs[database].result(TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    broken = "lost", "hung", "written_twice", "wrong", "over_max_attempts", "unacknowledged"
    assert {name: report[name] for name in broken} == dict.fromkeys(broken, 0)
    assert (report["seed"], report["database"], report["problems"], report["home"]) == (3, database, [], None)
    assert report["accepted"] == 202 == report["succeeded"] + report["failed"] + report["canceled"]
    assert (report["kinds"]["batch"], report["kinds"]["evaluate"]) == ({"succeeded": 1}, {"succeeded": 1})
    assert report["batch_rows"] == {"read": 5000, "lost": 0, "doubled": 0, "wrong": 0}
    assert report["succeeded"] >= 150
    assert report["failed"] >= 1, "one job kills every child that runs it"
    assert sum(report["executions"].values()) == 202
    assert {"flush_redis", "kill_redis"} <= set(report["faults"])
    assert set(report["faults"]) & {"kill_child", "kill_parent", "kill_supervisor", "freeze_worker"}
    assert ("restart_postgres" in report["faults"]) == (database == "postgres")
    assert "kill_supervisor worker" in done.stderr, "the schedule"
    trial = trials[["sqlite", "postgres"].index(database)]
    assert trial.processes() == []
    assert list(trial.temporary.glob("forebay-*")) == []


def test_ctrl_c_ends_all_it_started_and_says_where_it_was(trials, runs):
    trial = trials[2]
    process = subprocess.Popen(
        [*CHAOS, "--workers", "1", "--seconds", "600"], cwd=trial.folder, env=trial.environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        wait_until(lambda: list(trial.temporary.glob("*/executions.log")), "a worker has run a job", TIMEOUT_S)
        assert len(trial.processes()) > 4, "chaos, Valkey, a supervisor, its worker, a child"
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=TIMEOUT_S)
    finally:
        end(trial.processes())
    [home] = trial.temporary.glob("forebay-chaos-*")
    assert (process.returncode, out) == (130, "")
    assert said == f"ledger, logs and executions of this run are in {home}\ninterrupted\n"
    assert (home / "ledger.db").is_file()
    assert trial.processes() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--database", "mysql"], "--database 'mysql': write sqlite, postgres, or the address of an empty database"),
        (
            ["--kinds", "predict,bach"],
            "--kinds predict,bach: there is no 'bach'; there are predict, batch, train, evaluate",
        ),
        (["--seeds", "1-"], "--seeds 1-: write a number, or ranges such as 1-10 or 1,4,7-9"),
        (["--home", "."], "--home .: chaos needs a folder that is empty or not there yet"),
    ],
)
def test_what_chaos_cannot_do_is_refused_in_a_line(trials, arguments, words):
    (trials[2].folder / "here").touch()
    assert trials[2].refused(*arguments).startswith(words)
