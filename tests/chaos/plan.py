"""Which calls the client makes when: drawn from a seed, and from nothing else. Pure; load.py makes them."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from chaos.data import LARGE, SMALL, JobSpec
from chaos.model import Effect
from forebay.contract.job import JobKind

KINDS = (JobKind.PREDICT, JobKind.BATCH, JobKind.TRAIN, JobKind.EVALUATE)
CANCELED = 0.02  # of the calls: some of their jobs still wait when they are canceled, some run, some have ended
RETRIED = 0.5  # of the calls whose jobs fail or are canceled
# What one call submits: weight, and the least and most jobs in it.
SHAPES = {
    "many": (10, 20, 100),
    "single": (60, 1, 1),
    "batched": (10, 1, 1),
    "keyed": (12, 1, 1),
    "keyed many": (4, 5, 30),
}
# Of the other kinds: seconds of a run for each job, its rows, and within which share of the run it is submitted.
OTHERS = {JobKind.BATCH: (15, 5000, 0.7), JobKind.TRAIN: (30, 0, 0.4), JobKind.EVALUATE: (30, 1000, 0.8)}


@dataclass(frozen=True, slots=True)
class Submission:
    """One call of the client, `at` seconds after the start. A `key` is used twice; `cancel_after_s` cancels all its jobs.

    With `retry` those of its jobs that are to fail or to be canceled are retried when they have ended so.
    """

    at: float
    specs: tuple[JobSpec, ...]
    many: bool = False
    key: str | None = None
    cancel_after_s: float | None = None
    retry: bool = False

    @property
    def kind(self) -> JobKind:
        return self.specs[0].kind


def draw(seed: int, jobs: int, seconds: float, kinds: Collection[JobKind] = KINDS) -> list[Submission]:
    """Calls in order of time: `jobs` predictions within `seconds`, and of other kinds as many as there is time for."""
    chance = random.Random(f"load {seed}")
    made = _predictions(seed, chance, jobs, seconds) if JobKind.PREDICT in kinds else []
    for kind in KINDS:
        if kind in OTHERS and kind in kinds:
            made += _others(chance, kind, seconds)
    return sorted(made, key=lambda s: s.at)


def _predictions(seed: int, chance: random.Random, jobs: int, seconds: float) -> list[Submission]:
    killers = min(jobs, max(1, jobs // 2500))
    effects = [Effect.FAIL] * max(1, jobs // 100) + [Effect.FINE] * jobs
    effects = effects[: jobs - killers]
    chance.shuffle(effects)
    made = [Submission(_time(chance, seconds), (JobSpec(Effect.KILL),)) for _ in range(killers)]
    while effects:
        shape = chance.choices(list(SHAPES), [weight for weight, _, _ in SHAPES.values()])[0]
        _, least, most = SHAPES[shape]
        count = chance.randint(least, most)
        taken, effects = effects[:count], effects[count:]
        rows = chance.randint(2, 16) if shape == "batched" else 0
        specs = tuple(JobSpec(effect, rows, LARGE if chance.random() < 0.03 else SMALL) for effect in taken)
        key = f"chaos-{seed}-{len(made)}" if shape.startswith("keyed") else None
        cancel = chance.uniform(0, 1) if chance.random() < CANCELED else None
        retry = chance.random() < RETRIED
        made.append(Submission(_time(chance, seconds), specs, shape.endswith("many"), key, cancel, retry))
    return made


def _others(chance: random.Random, kind: JobKind, seconds: float) -> list[Submission]:
    """The second of each kind is canceled and retried, the third batch kills at one of its rows, the fourth is canceled."""
    every, rows, share = OTHERS[kind]
    made = []
    for i in range(max(1, round(seconds / every))):
        spec = JobSpec(Effect.KILL if kind is JobKind.BATCH and i == 2 else Effect.FINE, rows, kind=kind)
        cancel = chance.uniform(1, 0.1 * seconds) if i in (1, 3) else None
        at = round(chance.uniform(0, share * seconds), 3)
        made.append(Submission(at, (spec,), cancel_after_s=cancel, retry=i == 1))
    return made


def _time(chance: random.Random, seconds: float) -> float:
    return round(chance.uniform(0, 0.95 * seconds), 3)
