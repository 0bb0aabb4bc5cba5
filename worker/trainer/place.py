"""Where a process stands among those of its run: alone, or as torchrun started it."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_fabric.plugins.environments import TorchElasticEnvironment


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands among those of its run."""

    rank: int = 0
    world: int = 1
    device: str = "auto"  # "auto", "cpu" or "cuda"

    def on_this_machine(self, machines: int) -> int:
        """How many processes of the run are here, when it runs on so many machines."""
        return max(1, self.world // machines)


def find_place(device: str) -> Place:
    """This process's place, by what torchrun has set."""
    if not TorchElasticEnvironment.detect():
        return Place(device=device)
    around = TorchElasticEnvironment()
    return Place(around.global_rank(), around.world_size(), device)
