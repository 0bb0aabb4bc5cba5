"""The digits network of the acceptance tests: 64 inputs, 10 outputs, random weights, and real images to put through it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Floats = NDArray[np.float32]


def network() -> torch.nn.Module:
    """The same weights at every call."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)).eval()


def export(net: torch.nn.Module, path: Path) -> Path:
    program = torch.export.export(net, (torch.zeros(2, 64),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)
    return path


def direct(net: torch.nn.Module) -> Callable[[Any], Floats]:
    """The forward pass without Forebay."""

    def forward(rows: Any) -> Floats:  # (n, 64) -> (n, 10)
        with torch.inference_mode():
            result: Floats = net(torch.from_numpy(np.ascontiguousarray(rows))).numpy()
        return result

    return forward


def images(count: int) -> Floats:
    """(count, 64), grey values from 0 to 1; the 1,797 images again and again."""
    data = (load_digits().data / 16.0).astype(np.float32)
    return data[np.arange(count) % len(data)]
