"""The model that chaos runs, and what it is asked: 2x + 1 per element, and a line in a log for every row it has run.

The artifact is a JSON file that says where the log lies and how long a row takes. Loaded by workers through the `python`
runtime, so it knows nothing of the rest of chaos.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

TARGET = "chaos.model:LoggingModel"
# `job` is the client's number for the job and `row` the row within it: what the log's lines say. Loading a model warms it up
# with a row of zeros, so no job has the number 0.
INPUTS: dict[str, dict[str, Any]] = {
    "job": {"dtype": "int64", "shape": []},
    "row": {"dtype": "int64", "shape": []},
    "effect": {"dtype": "int64", "shape": []},
    "x": {"dtype": "float32", "shape": [-1]},
}
OUTPUTS: dict[str, dict[str, Any]] = {
    "job": {"dtype": "int64", "shape": []},
    "y": {"dtype": "float32", "shape": [-1]},
    "label": {"dtype": "str", "shape": []},
}


class Effect(IntEnum):
    """What a row does to its execution."""

    FINE = 0
    FAIL = 1  # raises Refused
    KILL = 2  # kills the process that runs it, every time


class Refused(ValueError):
    """A row that was made to fail."""


def label_of(row: int) -> str:
    """The label that the model gives a row, by its number."""
    return "odd" if row % 2 else "even"


def write_artifact(path: Path, log: Path, pause_s: float) -> Path:
    """The artifact of a LoggingModel that logs to `log` and takes `pause_s` seconds for a row."""
    path.write_text(json.dumps({"log": str(log), "pause_s": pause_s}), encoding="utf-8")
    return path


class LoggingModel:
    """Writes down which rows it has run, in one append for each forward pass, just before it gives their results."""

    def load(self, path: Path, device: str) -> None:
        """Open the log; `device` does not matter."""
        settings = json.loads(path.read_text(encoding="utf-8"))
        self._pause_s = float(settings["pause_s"])
        self._log = os.open(settings["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        """`{"job": …, "y": 2x + 1, "label": …}` per row."""
        for row in rows:
            if row["effect"] == Effect.KILL:
                self._note([row])
                os.kill(os.getpid(), signal.SIGKILL)
            if row["effect"] == Effect.FAIL:
                if len(rows) == 1:  # with others it has not been run: they will be tried without it
                    self._note(rows)
                raise Refused(f"job {int(row['job'])} was made to fail")
        time.sleep(self._pause_s * len(rows))
        results = [
            {"job": row["job"], "y": 2 * row["x"] + np.float32(1), "label": label_of(row["row"])} for row in rows
        ]
        self._note(rows)
        return results

    def _note(self, rows: Sequence[Any]) -> None:
        os.write(self._log, "".join(f"{int(row['job'])} {int(row['row'])}\n" for row in rows).encode())
