"""Which fault happens when: drawn from a seed, and from nothing else. Pure; what a fault does is faults.py's."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """Everything that chaos does to a running system."""

    KILL_CHILD = "kill_child"  # SIGKILL to the process that runs the model
    KILL_PARENT = "kill_parent"  # SIGKILL to the worker process, which `forebay worker` starts again
    KILL_SUPERVISOR = "kill_supervisor"  # SIGKILL to `forebay worker`, which is started again
    KILL_TRAINER = "kill_trainer"  # SIGKILL to the process that trains, below a child
    FREEZE_WORKER = (
        "freeze_worker"  # SIGSTOP to a worker and all below it, long enough for leases to lapse; then SIGCONT
    )
    KILL_REDIS = "kill_redis"  # SIGKILL; it comes back on its append-only file
    FLUSH_REDIS = "flush_redis"  # FLUSHALL
    CUT_REDIS = "cut_redis"  # the network cuts all connections to it, and goes on to cut some
    SLOW_REDIS = "slow_redis"  # answers take longer
    SILENT_REDIS = "silent_redis"  # nothing passes, connections stay open; then they are cut
    RESTART_POSTGRES = "restart_postgres"  # an immediate shutdown, which cuts everyone off, and recovery
    CUT_DATABASE = (
        "cut_database"  # as for Redis; one commit in three is cut, before it arrives or before its answer does
    )
    SLOW_DATABASE = "slow_database"
    SILENT_DATABASE = "silent_database"


ON_WORKERS = (
    FaultKind.KILL_CHILD, FaultKind.KILL_PARENT, FaultKind.KILL_SUPERVISOR, FaultKind.KILL_TRAINER, FaultKind.FREEZE_WORKER,
)  # fmt: skip
ON_POSTGRES = frozenset(
    {FaultKind.RESTART_POSTGRES, FaultKind.CUT_DATABASE, FaultKind.SLOW_DATABASE, FaultKind.SILENT_DATABASE}
)
ON_NETWORK = (ON_POSTGRES - {FaultKind.RESTART_POSTGRES}) | {
    FaultKind.CUT_REDIS, FaultKind.SLOW_REDIS, FaultKind.SILENT_REDIS,
}  # fmt: skip
EVERY_S = 3.0  # a fault, on average
LONGEST_FREEZE_S = 45.0
LONGEST_OUTAGE_S = 4.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `at` and `lasts_s` in seconds; `worker` is the number of the worker it strikes."""

    at: float
    kind: FaultKind
    worker: int | None = None
    lasts_s: float = 0.0

    def __str__(self) -> str:
        where = "" if self.worker is None else f" worker {self.worker}"
        return f"{self.at:6.2f} s  {self.kind}{where}" + (f" for {self.lasts_s:.2f} s" if self.lasts_s else "")


def lease_for(seconds: float) -> float:
    """The lease of a run of this length: short enough for several to lapse in it."""
    return min(5.0, max(2.0, seconds / 12))


def draw(seed: int, seconds: float, workers: int, *, postgres: bool, trains: bool = False) -> list[Fault]:
    """The faults of a run in the order in which they begin; the last has ended when `seconds` are over.

    Each kind comes at least once, and then as chance has it one fault every 3 s; what strikes PostgreSQL only where `postgres`.
    The last worker is the one that `trains`, if there is one.
    """
    chance = random.Random(f"faults {seed}")
    kinds = [kind for kind in FaultKind if postgres or kind not in ON_POSTGRES]
    if not trains:
        kinds.remove(FaultKind.KILL_TRAINER)
    more = max(0, round(seconds / EVERY_S) - len(kinds))
    wanted = kinds + chance.choices(kinds, k=more)
    return sorted((_fault(chance, kind, seconds, workers) for kind in wanted), key=lambda f: (f.at, f.kind))


def _fault(chance: random.Random, kind: FaultKind, seconds: float, workers: int) -> Fault:
    lasts = _length(chance, kind, seconds)
    at = chance.uniform(0.05 * seconds, 0.95 * seconds - lasts)
    worker = chance.randrange(workers) if kind in ON_WORKERS else None
    return Fault(round(at, 3), kind, workers - 1 if kind is FaultKind.KILL_TRAINER else worker, lasts)


def _length(chance: random.Random, kind: FaultKind, seconds: float) -> float:
    if kind is FaultKind.FREEZE_WORKER:
        shortest = 1.5 * lease_for(seconds)
        longest = max(shortest, min(LONGEST_FREEZE_S, 0.75 * seconds))
        return round(
            chance.triangular(shortest, longest, shortest), 3
        )  # more short ones, so that there are more zombies
    if kind in (FaultKind.KILL_REDIS, FaultKind.RESTART_POSTGRES, *ON_NETWORK):
        return round(chance.uniform(0.1, min(LONGEST_OUTAGE_S, seconds / 4)), 3)
    return 0.0
