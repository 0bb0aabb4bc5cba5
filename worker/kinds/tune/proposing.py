"""What the next trial of a tune tries. Optuna chooses, from what the ledger knows of the others; it keeps nothing itself."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from forebay.contract.job import JobState
from forebay.contract.requests.training import METRICS
from forebay.contract.requests.tuning import Range, Space, TuneRequest, combination, contains, space_size
from forebay.storage.tuning.records import PRUNED, Trial

ASK_AGAIN = 10  # times, for what no other trial has tried
FIRST_AT_RANDOM = 10  # trials, or a third of all, before others say what is tried
WHOLE = 1000  # of a run: how far one got that was pruned
_STATES = {
    JobState.SUCCEEDED: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, JobState.QUEUED: TrialState.RUNNING,
    JobState.RUNNING: TrialState.RUNNING,
}  # fmt: skip

optuna.logging.set_verbosity(optuna.logging.WARNING)


def propose(request: TuneRequest, trials: Sequence[Trial]) -> dict[str, Any]:
    """The parameters of the trial that follows these: none that one of them has had, as long as there are others.

    The first has those that a training job would have, if the space holds them, so that the best is not worse. The same request
    and trials give the same parameters.
    """
    space, number, seed = request.space, len(trials), request.train.seed
    size = space_size(space)
    if request.sampler == "grid" and size is not None:
        return combination(space, random.Random(seed).sample(range(size), request.planned)[number])
    if number == 0 and contains(space, request.train.params):
        return {name: request.train.params[name] for name in space}
    tried = [dict(trial.params) for trial in trials]
    for time in range(ASK_AGAIN):
        params = _ask(request, trials, random.Random(f"{seed} {number} {time}"))
        if params not in tried:
            return params
    if size is None:
        return params
    some = random.Random(f"{seed} {number}").sample(range(size), min(size, len(tried) + 1))
    return next((c for c in (combination(space, i) for i in some) if c not in tried), params)


def _ask(request: TuneRequest, trials: Sequence[Trial], dice: random.Random) -> dict[str, Any]:
    lower = not METRICS[request.train.metric or "loss"]
    sampler: BaseSampler = RandomSampler(seed=dice.getrandbits(31))
    if request.sampler == "tpe":
        first = min(FIRST_AT_RANDOM, -(-request.planned // 3))
        sampler = TPESampler(n_startup_trials=first, seed=dice.getrandbits(31), constant_liar=request.parallel > 1)
    study = optuna.create_study(direction="minimize" if lower else "maximize", sampler=sampler)
    distributions = {name: _distribution(one) for name, one in request.space.items()}
    study.add_trials([_known(request.space, distributions, trial) for trial in trials if trial.state in _STATES])
    asked = study.ask(distributions)
    return {name: _value(one, asked.params[name]) for name, one in request.space.items()}


def _known(space: Space, distributions: Mapping[str, BaseDistribution], trial: Trial) -> FrozenTrial:
    state = _STATES[trial.state]
    step = WHOLE * trial.steps // (trial.planned or max(1, trial.steps))
    reached = {step: trial.value} if state is TrialState.PRUNED and trial.value is not None else None
    return create_trial(
        state=state, params={name: _key(one, trial.params[name]) for name, one in space.items()},
        distributions=dict(distributions), value=trial.value if state is TrialState.COMPLETE else None,
        intermediate_values=reached,
    )  # fmt: skip


def _distribution(one: Range | tuple[Any, ...]) -> BaseDistribution:
    if not isinstance(one, Range):
        return CategoricalDistribution(range(len(one)))
    if one.step is not None:
        return IntDistribution(0, (one.count or 1) - 1)
    if one.whole:
        return IntDistribution(int(one.low), int(one.high), log=one.log)
    return FloatDistribution(one.low, one.high, log=one.log)


def _key(one: Range | tuple[Any, ...], value: Any) -> Any:
    """What stands for a value in its distribution."""
    if not isinstance(one, Range):
        return one.index(value)
    return value if one.step is None else round((value - one.low) / one.step)


def _value(one: Range | tuple[Any, ...], key: Any) -> Any:
    if not isinstance(one, Range):
        return one[key]
    return key if one.step is None else one.at(key)
