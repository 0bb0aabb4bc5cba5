"""The models and inputs that every contender of the benchmark shares, so that all of them run the same forward passes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 20240
W1_JOBS = 2_000
MAX_BATCH_SIZE = 64


@functools.cache
def mlp() -> Any:
    """The tiny network of W1: 64 inputs, 128 hidden units, 10 outputs, on one thread."""
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return net.eval()


def forward(rows: Any) -> NDArray[np.float32]:
    """(n, 64) rows through the network: (n, 10)."""
    import torch

    with torch.inference_mode():
        result: NDArray[np.float32] = mlp()(torch.from_numpy(np.ascontiguousarray(rows, np.float32))).numpy()
    return result


def export(folder: Path) -> Path:
    """The network as a .pt2 archive."""
    import torch

    program = torch.export.export(mlp(), (torch.zeros(2, 64),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, folder / "mlp.pt2")
    return folder / "mlp.pt2"


@functools.cache
def rows(count: int = W1_JOBS) -> NDArray[np.float32]:
    """Handwritten digits, (count, 64), repeated as often as it takes."""
    from sklearn.datasets import load_digits

    data = (load_digits().data / 16.0).astype(np.float32)
    return data[np.arange(count) % len(data)]
