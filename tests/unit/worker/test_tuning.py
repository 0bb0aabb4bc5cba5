"""What the next trial of a tune tries, and which trials fall behind."""

from typing import Any

import pytest

from forebay.contract.job import JobState
from forebay.contract.requests.training import TrainRequest
from forebay.contract.requests.tuning import Range, TuneRequest, combination, contains
from forebay.storage.tuning.records import PRUNED, Trial
from forebay.worker.kinds.tune.proposing import propose
from forebay.worker.kinds.tune.pruning import falls_behind

SPACE = {
    "lr": Range(1e-4, 1.0, log=True), "width": Range(8, 64, log=True), "rate": Range(0.0, 1.0, step=0.1),
    "layers": Range(1, 9, step=2), "hidden": ([32], [64, 32]), "kind": ("a", True, None),
}  # fmt: skip


def request(space: Any = SPACE, metric: str = "accuracy", seed: int = 3, **more: Any) -> TuneRequest:
    params = more.pop("params", {})
    return TuneRequest(TrainRequest("a:B", (), "csv", metric=metric, seed=seed, params=params), space, **more)


def trial(number: int, params: Any, value: float | None, state: str = JobState.SUCCEEDED, steps: int = 10) -> Trial:
    return Trial(number, "", state, params, value, steps, 10, None, None, None)


def tune(asked: TuneRequest, value: Any, states: tuple[str, ...] = (JobState.SUCCEEDED,)) -> list[Trial]:
    """All trials of a tune, one after the other; `value` says what one is worth."""
    trials: list[Trial] = []
    for number in range(asked.planned):
        params = propose(asked, trials)
        assert contains(asked.space, params)
        assert propose(asked, trials) == params, "the same trials lead to the same next one"
        state = states[number % len(states)]
        trials.append(trial(number, params, value(params) if state in (JobState.SUCCEEDED, PRUNED) else None, state, 4))
    return trials


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("parallel", [1, 3])
def test_whatever_became_of_the_others_the_next_is_in_the_space_and_new(sampler: str, parallel: int) -> None:
    states = (JobState.SUCCEEDED, PRUNED, JobState.FAILED, JobState.RUNNING, JobState.CANCELED, JobState.EXPIRED)
    trials = tune(request(sampler=sampler, parallel=parallel, trials=18), lambda params: params["lr"], states)
    assert len({str(one.params) for one in trials}) == 18


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_small_space_is_gone_through_once(sampler: str) -> None:
    space = {"a": (1, 2, 3), "b": Range(0, 1)}
    trials = tune(request(space, sampler=sampler), lambda params: 0.5)
    assert sorted(str(one.params) for one in trials) == sorted(str(combination(space, i)) for i in range(6))


def test_the_first_trial_has_the_parameters_that_a_training_job_would_have_if_the_space_holds_them() -> None:
    given = {"lr": 0.01, "width": 8, "rate": 0.3, "layers": 3, "hidden": [64, 32], "kind": None, "other": 1}
    assert propose(request(params=given), []) == {name: given[name] for name in SPACE}
    assert propose(request(params=given | {"layers": 4}), [])["layers"] != 4


def test_tpe_learns_where_values_are_better_and_random_sampling_does_not() -> None:
    def later(sampler: str, metric: str, sign: float) -> float:
        """How far off the trials are on average that follow the first ten."""
        asked = request({"x": Range(-1.0, 1.0), "y": Range(-1.0, 1.0)}, metric, trials=30, sampler=sampler)
        trials = tune(asked, lambda p: sign * ((p["x"] - 0.3) ** 2 + (p["y"] + 0.6) ** 2))
        return sum(abs(one.value or 0.0) for one in trials[10:]) / 20

    for metric, sign in (("accuracy", -1.0), ("loss", 1.0)):
        assert later("tpe", metric, sign) < 0.5 * later("random", metric, sign)


def test_a_trial_falls_behind_the_median_or_the_best_third() -> None:
    others = [0.1, 0.2, 0.3, 0.4, 0.5]
    for metric, sign in (("accuracy", 1), ("loss", -1)):
        signed = [sign * other for other in others]
        assert falls_behind("median", metric, sign * 0.29, signed)
        assert not falls_behind("median", metric, sign * 0.3, signed)
        assert falls_behind("halving", metric, sign * 0.39, signed)
        assert not falls_behind("halving", metric, sign * 0.4, signed)
    assert not falls_behind("median", "accuracy", 0.0, others[:3]), "three others say nothing yet"
