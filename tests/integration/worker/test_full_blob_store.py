"""A blob store on a file system that is full: what needs no room goes on, and the worker stops when it is told to."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from forebay.contract.job import JobState
from support.waiting import wait_until
from support.worker_stack import WorkerStack

VECTOR = {"inputs": {"x": {"dtype": "float32", "shape": [-1]}}, "outputs": {"x": {"dtype": "float32", "shape": [-1]}}}
MOUNT, UMOUNT = shutil.which("mount") or "", shutil.which("umount") or ""
STOPS_S = 20  # at most: less than a stopping worker leaves its jobs, and than a result waits for room


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "blobs"
    folder.mkdir()
    mount = [MOUNT, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if not MOUNT or os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run([UMOUNT, "--lazy", str(folder)], check=True)


def test_a_large_result_that_finds_no_room_holds_up_neither_small_ones_nor_the_end_of_its_worker(
    tmp_path: Path, broker: str, small_disk: Path
) -> None:
    given = {"BLOBS": small_disk.as_uri(), "SHUTDOWN_GRACE_S": "60", "MAX_INLINE_BYTES": "16MiB"}
    with closing(WorkerStack(tmp_path, broker, **given)) as stack:
        model = stack.model("Echo", **VECTOR)
        worker = stack.worker(MAX_INLINE_BYTES="64KiB").ready()
        large = stack.client.predict(model, np.arange(2_000_000, dtype=np.float32))  # 8 MB, and so is its result
        wait_until(lambda: "blobs_full" in worker.said(), "the large result waits for room")
        small = stack.client.predict_many(model, np.arange(60, dtype=np.float32).reshape(20, 3))
        assert [job.result(60).tolist() for job in small] == [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(20)]
        assert large.state is JobState.RUNNING
        started = time.monotonic()
        assert worker.terminate() == 0
        assert time.monotonic() - started < STOPS_S
        assert (large.state, large.info().attempt) == (JobState.QUEUED, 0)
        subprocess.run([MOUNT, "-o", "remount,size=64m", str(small_disk)], check=True)
        stack.worker("w2", MAX_INLINE_BYTES="64KiB").ready()
        assert large.result(60)[-1] == 1_999_999
