"""The benchmarks run, and compare every result with the direct forward pass; what they measure is no test's business."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.waiting import wait_until


def measured(folder: Path, *command: str) -> Any:
    """The line of JSON that a benchmark prints."""
    done = subprocess.run(
        [sys.executable, "-m", *command, "--rounds", "1", "--json"],
        cwd=folder, capture_output=True, text=True, timeout=500, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_contender_gives_the_results_of_the_direct_forward_pass_and_the_docs_are_written(tmp_path: Path) -> None:
    found = measured(tmp_path, "bench", "--workloads", "W1", "--jobs", "64", "--docs", "out")
    assert set(found["W1"]["median"]) == {"bare loop", "plain Celery", "Celery, lists of 64 by hand", "forebay"}
    assert all(rate > 0 for rate in found["W1"]["median"].values())
    used = found["W1"]["processor_us"]
    assert {"client", "worker", "child"} <= set(used["plain Celery"]) == set(used["forebay"])
    assert sum(used["plain Celery"].values()) > 0  # 64 of Forebay's may cost less than the system's clock can tell
    page = (tmp_path / "out" / "benchmark.md").read_text()
    assert "| forebay |" in page
    assert (tmp_path / "out" / "benchmark.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_target_is_measured_without_contenders_and_stands_in_the_docs(tmp_path: Path) -> None:
    found = measured(tmp_path, "bench", "--workloads", "poison", "--docs", "out")
    assert found["poison"]["ratio"] > 0
    assert "| poison: " in (tmp_path / "out" / "benchmark.md").read_text()


@pytest.mark.slow  # a minute
def test_the_gpu_benchmark_runs_where_there_is_no_gpu(tmp_path: Path) -> None:
    found = measured(tmp_path, "bench.gpu", "--device", "cpu", "--small")
    assert set(found["cases"]) == {"images", "texts", "encoder", "round trip"}
    assert all(case["ratio"] > 0 and case["forebay"]["bytes"][0] > 0 for case in found["cases"].values())
    assert "a try" in found["device"]


def test_a_benchmark_that_is_ended_by_sigterm_leaves_no_process_running(tmp_path: Path) -> None:
    started = psutil.Popen(
        [sys.executable, "-m", "bench", "--workloads", "W1", "--rounds", "100"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    below: list[psutil.Process] = []

    def works() -> bool:
        below[:] = started.children(recursive=True)
        return len({process.ppid() for process in below}) > 2  # a server, a worker, and the worker's child

    wait_until(works, "its processes run")
    started.terminate()
    assert started.wait(240) == 143
    wait_until(lambda: not any(map(runs, below)), "all have ended")


def runs(process: psutil.Process) -> bool:
    """Nobody may be there to reap an orphan that has ended."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_predictions_over_http_are_measured_without_an_error_and_each_is_a_job(tmp_path: Path) -> None:
    found = measured(tmp_path, "bench.http", "--seconds", "1")
    assert [(one["requests"] > 0, one["errors"]) for one in found["forebay"]] == [(True, 0)]
