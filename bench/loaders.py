"""What a user writes instead of a batch job: a torch DataLoader, whose processes read and decode, and a loop over its batches."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from bench import networks
from forebay.datasets.columns import from_numpy

SIDE = 224


def write_files(folder: Path, count: int) -> list[str]:
    """JPEG files of 17 kB, smooth as photographs are; their paths in order."""
    folder.mkdir()
    random = np.random.default_rng(networks.SEED)
    paths = [str(folder / f"{i:05d}.jpg") for i in range(count)]
    for i, path in enumerate(paths):
        if i < 200:
            blocks = random.integers(0, 255, (SIDE // 8, SIDE // 8, 3), np.uint8)
            Image.fromarray(blocks).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=90)
        else:
            os.link(paths[i % 200], path)
    return paths


class Files(torch.utils.data.Dataset[Any]):
    """What a user writes: a file read, decoded, and made a tensor."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> Any:
        data = Path(self._paths[i]).read_bytes()
        return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))


class Tokens:
    """Makes batches of texts tensors, by the tokenizer of a folder, which each process loads once."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._tokenizer: Any = None

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Padded to the longest."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self._folder)
        return dict(self._tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt"))


def make_loader(
    data: Any, batch: int, workers: int, pinned: bool = False, collate: Callable[[Any], Any] | None = None
) -> torch.utils.data.DataLoader[Any]:
    """Batches in order; its processes stay from one pass to the next."""
    return torch.utils.data.DataLoader(
        data, batch, num_workers=workers, multiprocessing_context="spawn", persistent_workers=True, pin_memory=pinned,
        collate_fn=collate,
    )  # fmt: skip


@torch.inference_mode()
def loop(
    net: Any, batches: Any, names: Sequence[Any], out: Path, device: str = "cpu", dtype: torch.dtype | None = None
) -> NDArray[np.float32]:
    """All batches through a network, and the outputs, beside what names each, into one Parquet file."""
    made = []
    for batch in batches:
        with torch.autocast(device.partition(":")[0], dtype=dtype, enabled=dtype is not None):
            made.append(net(_moved(batch, device)).float().cpu().numpy())
    values = np.concatenate(made)
    pq.write_table(pa.table({"name": list(names), "output": from_numpy(values)}), out)
    return values


def _moved(batch: Any, device: str) -> Any:
    if isinstance(batch, dict):
        return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return batch.to(device, non_blocking=True)
