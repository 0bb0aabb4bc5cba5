"""Small networks for the tests of runtimes, rows for them, and what they give without Forebay."""

import numpy as np
import torch

from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature


def version(runtime: str, signature: Signature | None = None, **options) -> ModelVersion:
    return ModelVersion("m", 1, runtime, "", "file", 0, signature or Signature(), options=options)


def rows(n: int, *shape: int, name: str = "x") -> list[dict]:
    generator = np.random.default_rng(0)
    return [{name: generator.standard_normal(shape, dtype=np.float32)} for _ in range(n)]


class Net(torch.nn.Module):
    def __init__(self, width: int = 3, tied: bool = False) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, width)
        self.register_buffer("shift", torch.ones(width))
        if tied:
            self.again = self.second

    def forward(self, x):  # (batch, 4)
        return self.second(torch.relu(self.first(x))) + self.shift  # (batch, width)


class TwoHeads(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x, *, ids):  # (batch, 4), (batch, length)
        with torch.no_grad():
            total = ids.sum(-1)
        return {"logits": self.net(x), "total": total, "argmax": self.net(x).argmax(-1)}


def bare(module: torch.nn.Module, given: list[dict]) -> np.ndarray:
    with torch.inference_mode():
        return module(torch.from_numpy(np.stack([row["x"] for row in given]))).numpy()
