"""Models that the worker of the tests runs through the `python` runtime; they leave their traces in its working folder.

`runs.txt` gains one line per row that a Recorder has run; while a file called `hold` lies there, it waits.
"""

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

RUNS, HOLD = "runs.txt", "hold"


class Doubler:
    """Twice the number; refuses a batch with a negative one, and says which."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        for row in rows:
            if row < 0:
                raise ValueError(f"cannot double {row}")
        return [2 * row for row in rows]


class Echo:
    """Gives back what it gets."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return list(rows)


class OneShort:
    """Forgets a row."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return list(rows)[1:]


class Stacker:
    """Stacks its rows, which only equal shapes allow; gives each row's sum and the size of the batch it was in."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        batch = np.stack([row["x"] for row in rows])  # (batch, free)
        return [{"sum": np.float32(row.sum()), "batch": np.int64(len(batch))} for row in batch]


class TwoWays:
    """Two named inputs, two named outputs."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return [{"total": row["left"] + row["right"], "text": row["word"].upper()} for row in rows]


class Recorder:
    """Writes down each row's number before it answers; `kill` in a row kills this process."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        if any(row.get("kill") for row in rows):
            _write([row["n"] for row in rows])
            os.kill(os.getpid(), signal.SIGKILL)
        while Path(HOLD).exists():
            threading.Event().wait(0.01)
        _write([row["n"] for row in rows])
        return [row["n"] for row in rows]


class Broken:
    """Does not load."""

    def load(self, path: Path | None, device: str) -> None:
        raise RuntimeError("no such weights")

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return list(rows)


def _write(numbers: list[int]) -> None:
    """One append for all: several processes may write at once."""
    with Path(RUNS).open("ab", buffering=0) as file:
        file.write("".join(f"{os.getppid()} {n}\n" for n in numbers).encode())


class Narrow:
    """Doubles up to 40 rows at once and has no room for more, as a device would say it; notes how many rows came."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        _write([len(rows)])
        if len(rows) > 40:
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory: tried to allocate")
        return [2 * row for row in rows]


class Lengths:
    """A text model that counts tokens by the word; each result is the size of the batch and its longest text."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return [[len(rows), max(self.cost(row) for row in rows)] for row in rows]

    def cost(self, row: str) -> int:
        return len(row.split())


class Heavy(Doubler):
    """Says that it takes up 1000 bytes."""

    def nbytes(self) -> int:
        return 1000


class Slowly:
    """Twice the first number of each vector, a little after it was asked; a row with the number in `poison` kills."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        while Path(HOLD).exists():
            threading.Event().wait(0.01)
        _write([int(row["x"][0]) for row in rows if row["x"].any()])  # a warm-up's row is all zeros
        threading.Event().wait(0.02)
        if any(row["x"][0] < 0 for row in rows):
            raise ValueError("a negative number")
        return [{"y": np.float32(2 * row["x"][0])} for row in rows]


class Total:
    """The sum of a vector."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return [{"total": np.float32(row["x"].sum())} for row in rows]


class Shout:
    """A text in capitals; counts letters, so that texts of like length share a batch."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return [row["text"].upper() for row in rows]

    def cost(self, row: Any) -> int:
        return len(row["text"])


class Brightness:
    """The mean of an image's pixels."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return [float(row["image"].mean()) for row in rows]
