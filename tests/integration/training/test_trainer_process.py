"""The trainer as a process of its own: stopped, killed, gone on; several of them through torchrun; what its status says."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from forebay.contract.requests.request import encode
from forebay.contract.requests.training import (
    Event,
    Refused,
    Saved,
    Split,
    Trained,
    TrainRequest,
    decode_event,
)
from forebay.worker.trainer.process import SPARED
from support.training_runs import npz, request, run
from support.waiting import wait_until

START_S = 150  # to load torch, Lightning and torchmetrics on a machine that is busy, and to train a little
SEVERAL = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
OFTEN: dict[str, Any] = {"checkpoint_steps": 15, "checkpoint_minutes": None, "checkpoint_keep": 100}


pytestmark = pytest.mark.timeout(600)


def classes(folder: Path, rows: int = 1500, **params: object) -> TrainRequest:
    x = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    files = npz(folder, a=x[:, 0], b=x[:, 1], c=x[:, 2], y=(x[:, 0] * x[:, 1] > x[:, 2]).astype(int))
    given = {"epochs": 30, "batch_size": 64, "hidden": [32], "lr": 0.01, "schedule": "cosine"} | params
    return request("classifier", files, "y", params=given, **OFTEN)


def start(folder: Path, asked: TrainRequest, processes: int = 0) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    (folder / "request.json").write_bytes(encode(asked))
    how = [*SEVERAL, str(processes)] if processes else []
    command = [sys.executable, *how, "-m", "forebay.worker.trainer.process", str(folder), "--device", "cpu"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"})


def events(folder: Path) -> list[Event]:
    path = folder / "events.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [event for event in map(decode_event, lines) if event is not None]


def saved(folder: Path) -> list[Saved]:
    return [event for event in events(folder) if isinstance(event, Saved)]


def interrupt(
    folder: Path, asked: TrainRequest, after: int, how: signal.Signals, processes: int = 0
) -> tuple[int, Saved]:
    """Runs until `after` more checkpoints are saved, then sends a signal; the exit status and the last checkpoint.

    What was saved last lies where the next run looks for it.
    """
    before = len(saved(folder))
    process = start(folder, asked, processes)
    try:
        wait_until(
            lambda: len(saved(folder)) >= before + after or process.poll() is not None, "enough is saved", START_S
        )
        assert process.poll() is None, "it ended before it could be interrupted"
        process.send_signal(how)
        status = process.wait(120)
    finally:
        process.kill()
        process.wait()
    last = saved(folder)[-1]
    shutil.copy(folder / last.path, folder / "resume.ckpt")
    return status, last


def finish(folder: Path, asked: TrainRequest, processes: int = 0) -> Trained:
    process = start(folder, asked, processes)
    try:
        assert process.wait(START_S) == 0
    finally:
        process.kill()
        process.wait()
    end = events(folder)[-1]
    assert isinstance(end, Trained)
    return end


@pytest.mark.slow  # tests/integration/training/test_training_kills.py kills trainers in every run
def test_a_run_that_is_stopped_and_killed_ends_with_the_metrics_of_the_undisturbed_one(tmp_path: Path) -> None:
    asked, folder, rng = classes(tmp_path), tmp_path / "run", random.Random(7)
    status, stopped = interrupt(folder, asked, rng.randrange(1, 10), signal.SIGTERM)
    assert status == 4
    status, killed = interrupt(folder, asked, rng.randrange(1, 10), signal.SIGKILL)
    assert (status, killed.step > stopped.step) == (-signal.SIGKILL, True)
    end, undisturbed = finish(folder, asked), run(asked).trained
    assert dict(end.metrics) == pytest.approx(dict(undisturbed.metrics), abs=1e-3)
    assert (end.epochs, end.steps, end.confusion) == (undisturbed.epochs, undisturbed.steps, undisturbed.confusion)
    left = {path.name for path in folder.iterdir()}
    assert left == {"request.json", "resume.ckpt", "events.jsonl", "checkpoints", "artifact"}, "it wrote into its cwd"
    again = [
        event.step for event in saved(folder) if killed.step < event.step <= killed.step + OFTEN["checkpoint_steps"]
    ]
    assert len(again) == 1, "more was done again than lies between two checkpoints"


@pytest.mark.slow
def test_a_run_that_is_killed_at_five_random_moments_ends_with_the_same_metrics(tmp_path: Path) -> None:
    asked, folder, rng = classes(tmp_path), tmp_path / "run", random.Random()
    for _ in range(5):
        interrupt(folder, asked, rng.randrange(1, 10), signal.SIGKILL)
    assert dict(finish(folder, asked).metrics) == pytest.approx(dict(run(asked).trained.metrics), abs=1e-3)


def test_two_processes_that_were_stopped_once_end_with_the_parameters_of_one(tmp_path: Path) -> None:
    asked, folder = classes(tmp_path, 900, epochs=20, batch_size=63), tmp_path / "run"
    together = replace(asked, nproc=2)
    status, last = interrupt(folder, together, 2, signal.SIGTERM, processes=2)
    assert status != 0
    assert last == saved(folder)[-1]
    assert not [event for event in events(folder) if isinstance(event, Trained | Refused)]
    end, alone = finish(folder, together, processes=2), run(asked)
    for name, tensor in load_file(folder / "artifact" / "weights.safetensors").items():
        torch.testing.assert_close(tensor, alone.weights()[name], atol=1e-4, rtol=0)
    assert dict(end.metrics) == pytest.approx(dict(alone.trained.metrics), abs=1e-4)
    losses = {event.step: event.values["loss"] for event in alone.points("train")}
    told = [event for event in events(folder) if getattr(event, "split", None) == "train" and event.step in losses]
    ends = [point for point in told if point.step % 10 == 0]  # of epochs: 630 rows in batches of 63
    assert {point.step: point.values["loss"] for point in ends} == pytest.approx(
        {point.step: losses[point.step] for point in ends}, abs=1e-4
    )


def test_a_request_that_will_not_do_ends_with_a_refusal_and_nothing_on_the_screen(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    asked = request("classifier", npz(tmp_path, a=[1.0, 2.0], y=[1, 1]), "y", split=Split(validation=0, test=0))
    (folder / "request.json").write_bytes(encode(asked))
    program = "import sys; from forebay.worker.trainer import process; status = process.main(sys.argv[1:])"
    program += "; open('loaded', 'w').write('\\n'.join(sys.modules)); sys.exit(status)"
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=START_S, check=False, cwd=folder, env=os.environ | {"CI": ""}
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    assert events(folder)[-1] == Refused(
        "InvalidInput", "the target 'y' is '1' in all 2 training rows; nothing can be learned"
    )
    assert [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()] == ["refused"]
    loaded = set((folder / "loaded").read_text().splitlines())
    assert "torchmetrics" in loaded
    assert loaded.isdisjoint(SPARED), "half of the seconds that it takes to start"
