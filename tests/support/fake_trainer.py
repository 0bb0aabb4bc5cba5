"""A trainer that learns nothing: it speaks the protocol of a trainer's folder, and misbehaves as its request asks.

Each step adds its number to a sum, which a checkpoint carries; the end's `loss` tells whether every step was counted once.
`params`: `steps`, `step_s`, and the step at which it should `exit`, end with a `usage` error, `kill` itself, `hang`, or be
`refused`; `once` does so in a folder without a checkpoint only. `deaf` ignores SIGTERM.
"""

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path

from forebay.contract.requests.request import decode, encode
from forebay.contract.requests.training import (
    ARTIFACT_FOLDER,
    CHECKPOINT_FOLDER,
    EVENTS_FILE,
    REQUEST_FILE,
    RESUME_FILE,
    TEST,
    TRAIN,
    DataSummary,
    Event,
    Point,
    Refused,
    Saved,
    Trained,
    TrainRequest,
)

PAUSE = threading.Event()  # never set


class StandIn:
    def __init__(self, folder: Path) -> None:
        self.folder, self.leads = folder, os.environ.get("RANK", "0") == "0"
        self.request = decode((folder / REQUEST_FILE).read_bytes(), TrainRequest)
        self.step, self.sum, self.stop, self.fresh = 0, 0, False, True
        if (folder / RESUME_FILE).exists():
            self.step, self.sum = json.loads((folder / RESUME_FILE).read_text())
            self.fresh = False

    def tell(self, event: Event) -> None:
        if self.leads:
            with (self.folder / EVENTS_FILE).open("a") as file:
                file.write(encode(event).decode() + "\n")

    def save(self) -> None:
        path = self.folder / CHECKPOINT_FOLDER / f"step={self.step}.ckpt"
        if self.leads:
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps([self.step, self.sum]))
        self.tell(Saved(self.step, 1, f"{CHECKPOINT_FOLDER}/{path.name}"))

    def at(self, what: str) -> bool:
        asked = self.request.params
        return asked.get(what) == self.step and (self.fresh or not asked.get("once"))

    def misbehave(self) -> None:
        if self.at("exit"):
            sys.stderr.write("redis://user:secret@host/0 is full\nand so it ends\n")
            sys.exit(7)
        if self.at("usage"):
            argparse.ArgumentParser(prog="trainer").parse_args(["--no-such-option"])
        if self.at("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        while self.at("hang"):
            PAUSE.wait(0.1)
        if self.at("refused"):
            self.tell(Refused("InvalidInput", "column 'label' has one class only"))
            sys.exit(3)

    def run(self) -> None:
        signal.signal(
            signal.SIGTERM, lambda *_: None if self.request.params.get("deaf") else setattr(self, "stop", True)
        )
        steps = int(self.request.params["steps"])
        self.tell(DataSummary({"train": 80, "test": 20}, "ab" * 32, ("x",), ("no", "yes")))
        while self.step < steps and not self.stop:
            self.step += 1
            self.sum += self.step
            self.misbehave()
            self.tell(Point(self.step, 1, TRAIN, {"loss": 1 / self.step}, 100.0, 1.0, steps))
            if self.step % (self.request.checkpoint_steps or steps) == 0:
                self.save()
            PAUSE.wait(float(self.request.params.get("step_s", 0.0)))
        if self.stop:
            self.save()
            sys.exit(0)
        self.finish(steps)

    def finish(self, steps: int) -> None:
        artifact = self.folder / ARTIFACT_FOLDER
        if self.leads:
            artifact.mkdir()
            (artifact / "sum.json").write_text(json.dumps(self.sum))
        metrics = {"loss": float(self.sum), "accuracy": float(self.request.params.get("accuracy", 0.5))}
        self.tell(Point(steps, 1, TEST, metrics))
        field = {"x": {"dtype": "float32", "shape": []}}
        self.tell(
            Trained(metrics, "recipe", field, {"y": {"dtype": "int64", "shape": []}}, {"recipe": "stand-in"}, 1, steps)
        )


if __name__ == "__main__":
    StandIn(Path(sys.argv[1])).run()
