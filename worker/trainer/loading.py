"""The batches of an epoch: every process takes its share of each global batch, in an order that seed and epoch alone decide.

So a run can go on at any batch, and many processes compute what one would. Tensors lie in memory; knows torch, no Lightning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

POOL = 50  # batches whose rows are sorted by length together


class Batch(NamedTuple):
    """A process's share of a global batch. A row that only fills up weighs 0; `total` is the weight of the global batch."""

    inputs: tuple[Tensor, ...]
    targets: Tensor  # (rows,)
    weights: Tensor  # (rows,) float32
    total: float


class Ragged:
    """Rows of different lengths. Those that are picked are padded with zeros at their right, to the longest of them."""

    def __init__(self, rows: Sequence[NDArray[Any]]) -> None:
        self._rows = rows

    def __getitem__(self, rows: Tensor) -> Tensor:
        return pad_sequence([torch.from_numpy(self._rows[i]) for i in rows.tolist()], batch_first=True)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a split as tensors, and what each weighs. With `lengths`, batches hold rows of about the same."""

    inputs: tuple[Tensor | Ragged, ...]
    targets: Tensor
    weights: Tensor
    lengths: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(slots=True)
class Position:
    """Up to where a run has got: the epoch, from 0, and the first batch of it that is not done."""

    epoch: int = 0
    batch: int = 0


class TrainingBatches:
    """The rest of the epoch at `position`; Lightning asks for an iterator at the start of each."""

    def __init__(self, rows: Rows, size: int, seed: int, position: Position, rank: int, world: int) -> None:
        self._rows = rows
        self._size = min(size, len(rows))
        self._seed = seed
        self._position = position
        self._rank, self._world = rank, world

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self._size)

    def __iter__(self) -> Iterator[Batch]:
        epoch, order = self._position.epoch, shuffled(len(self._rows), self._seed, self._position.epoch)
        if self._rows.lengths is not None:
            order = _grouped(order, self._rows.lengths, self._size, np.random.default_rng([self._seed, epoch, 1]))
        drawn = torch.from_numpy(order)
        for number in range(self._position.batch, len(self)):
            yield self._share(drawn[number * self._size : (number + 1) * self._size])

    def state_dict(self) -> dict[str, Any]:
        """Tells Lightning that a run can go on within an epoch; where, `position` says."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: `position` was set with the module's state."""

    def _share(self, batch: Tensor) -> Batch:
        """Every process has as many rows: a process without one of its own in a short batch takes one that weighs nothing."""
        total = float(self._rows.weights[batch].sum())
        mine = batch[self._rank :: self._world]
        short = math.ceil(len(batch) / self._world) - len(mine)
        weights = self._rows.weights[mine]
        if short:
            mine = torch.cat([mine, batch[:1].expand(short)])
            weights = torch.cat([weights, torch.zeros(short)])
        if len(mine) == len(self._rows) and self._world == 1:  # all of them: no need to copy tensors
            mine = torch.arange(len(mine))
            inputs = tuple(rows if isinstance(rows, Tensor) else rows[mine] for rows in self._rows.inputs)
            return Batch(inputs, self._rows.targets, self._rows.weights, total)
        inputs = tuple(tensor[mine] for tensor in self._rows.inputs)
        return Batch(inputs, self._rows.targets[mine], weights, total)


class ValidationBatches:
    """This process's share of a split, in order: every `world`-th row from `rank` on, filled up to equal numbers."""

    def __init__(self, rows: Rows, size: int, rank: int = 0, world: int = 1) -> None:
        share = math.ceil(len(rows) / world)
        mine = (torch.arange(share) * world + rank) % max(1, len(rows))
        self._parts: Sequence[Tensor] = torch.split(mine, max(1, size)) if len(rows) else []
        self._rows = rows

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for part in self._parts:
            yield tuple(tensor[part] for tensor in self._rows.inputs)


def shuffled(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order: NDArray[np.int64] = np.random.default_rng([seed, epoch]).permutation(rows)
    return order


def _grouped(
    order: NDArray[np.int64], lengths: NDArray[np.int64], size: int, draw: np.random.Generator
) -> NDArray[np.int64]:
    """The order with batches of rows of about equal length: sorted within POOL batches, whole batches then drawn anew."""
    pools = [order[i : i + POOL * size] for i in range(0, len(order), POOL * size)]
    near = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    whole = len(near) // size
    drawn = near[: whole * size].reshape(whole, size)[draw.permutation(whole)]
    return np.concatenate([drawn.ravel(), near[whole * size :]])


def step_seed(seed: int, epoch: int, batch: int, rank: int) -> int:
    """What dropout of one batch in one process begins with: no state of a generator has to be kept."""
    return int(np.random.SeedSequence([seed, epoch, batch, rank]).generate_state(1, np.uint64)[0] >> 1)
