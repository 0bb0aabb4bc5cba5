"""Which process of its run this one is: the only one, or one of those that torchrun started."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rank:
    """A process's number among the `world` of its run, and the device it is to use."""

    index: int = 0
    world: int = 1
    device: str = "auto"  # "auto", "cpu" or "cuda"

    def processes_here(self, machines: int) -> int:
        """How many processes of the run this machine has, when the run has so many machines."""
        return max(1, self.world // machines)


def own_rank(device: str) -> Rank:
    """This process's, by the environment that torchrun sets."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Rank(device=device)
    return Rank(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)
