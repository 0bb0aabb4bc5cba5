"""The workloads of images: large payloads through predict_many, and JPEG files through a small network as a batch job.

Each gives a ratio for every round, of Forebay's rate to that of what it is compared to, measured in turn.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import numpy as np

from bench import networks
from bench.stack import WAIT_S, embedded_stack, temporary_folder

IMAGES, SHAPE = 64, (3, 224, 224)  # of a job, and of an image: 150 kB
JOBS = 30


def payload(rounds: int) -> list[float]:
    """Bytes per second of jobs of 64 images, from the call to the last result, to `cp` and `sha256sum` of the same bytes."""
    random = np.random.default_rng(networks.SEED)
    with temporary_folder() as folder, embedded_stack() as (client, _):
        client.models.register(
            "corners",
            runtime="python",
            options={"class": "bench.networks:Corners"},
            inputs={"image": {"dtype": "uint8", "shape": list(SHAPE)}},
            max_batch_size=IMAGES,
        )
        ratios = []
        for i in range(rounds + 1):  # the first warms up
            jobs = [random.integers(0, 256, (IMAGES, *SHAPE), np.uint8) for _ in range(JOBS)]
            started = time.perf_counter()
            made = [job.result(WAIT_S) for job in client.predict_many("corners", jobs, batched=True)]
            took = time.perf_counter() - started
            if not all(np.array_equal(result, job[:, :, 0, 0]) for result, job in zip(made, jobs, strict=True)):
                raise SystemExit("payload: a result is not what the model makes of its input")
            copied = _copy_and_hash(jobs, folder / str(i))
            ratios += [copied / took] if i else []
    return ratios


def _copy_and_hash(jobs: list[np.ndarray], folder: Path) -> float:
    """Seconds that `cp` and `sha256sum` take for these bytes, a file for each job."""
    (folder / "to").mkdir(parents=True)
    paths = [folder / str(i) for i in range(len(jobs))]
    for path, job in zip(paths, jobs, strict=True):
        path.write_bytes(job.tobytes())
    started = time.perf_counter()
    subprocess.run(["/bin/cp", *paths, folder / "to"], check=True)
    subprocess.run(["/usr/bin/sha256sum", *(folder / "to").iterdir()], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started
