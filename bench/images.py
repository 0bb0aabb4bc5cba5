"""The workloads of images: large payloads through predict_many, and JPEG files through a small network as a batch job.

Each gives a ratio for every round, of Forebay's rate to that of what it is compared to, measured in turn.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from bench import networks
from bench.loaders import SIDE, Files, loop, make_loader, write_files
from bench.stack import WAIT_S, embedded_stack, temporary_folder

IMAGES, SHAPE = 64, (3, 224, 224)  # of a job, and of an image: 150 kB
JOBS = 30
FILES, BATCH = 4_000, 64


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


def folder(rounds: int) -> list[float]:
    """Files per second of a batch job, from the call to its result, to those of a DataLoader loop with two workers."""
    with temporary_folder() as root, embedded_stack() as (client, _):
        files = write_files(root / "files", FILES)
        net = networks.glance().eval()
        save_file(net.state_dict(), root / "glance.safetensors")
        client.models.register(
            "glance",
            root / "glance.safetensors",
            options={"factory": "bench.networks:glance"},
            inputs={"image": {"dtype": "uint8", "shape": [SIDE, SIDE, 3]}},
            outputs={"scores": {"dtype": "float32", "shape": [10]}},
            max_batch_size=BATCH,
        )
        loader = make_loader(Files(files), BATCH, 2)
        torch.set_num_threads(1)
        ratios = []
        for i in range(rounds + 1):  # the first warms up
            shutil.rmtree(root / "out", ignore_errors=True)
            started = time.perf_counter()
            client.batch("glance", root / "files", root / "out").result(WAIT_S)
            ours = time.perf_counter() - started
            expected = loop(net, loader, files, root / "loop.parquet")
            theirs = time.perf_counter() - started - ours
            made = pq.read_table(root / "out").sort_by("path")["scores"].combine_chunks().flatten().to_numpy()
            if not np.allclose(made.reshape(-1, 10), expected, atol=1e-4):
                raise SystemExit("images: a result differs from the loop's")
            ratios += [theirs / ours] if i else []
    return ratios
