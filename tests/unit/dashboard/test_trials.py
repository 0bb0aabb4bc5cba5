"""What a parameter has to do with the values of trials."""

import random
from typing import Any

from forebay.contract.job import JobState
from forebay.contract.requests.tuning import Range
from forebay.dashboard.reads.trials import best_so_far, importance, slices
from forebay.storage.tuning.records import PRUNED, Trial


def trial(number: int, value: float | None, state: str = JobState.SUCCEEDED, **params: Any) -> Trial:
    return Trial(number, "", state, params, value, 1, 1, None, None, None)


def test_the_parameter_that_decides_is_important_and_one_that_does_not_matter_is_not() -> None:
    space = {"lr": Range(1e-4, 1.0, log=True), "kind": ("a", "b"), "other": Range(0.0, 1.0), "choice": (1, 2, 3)}
    dice = random.Random(0)
    trials = []
    for number in range(200):
        params = {
            "lr": 10 ** dice.uniform(-4, 0),
            "kind": dice.choice("ab"),
            "other": dice.random(),
            "choice": dice.choice((1, 2, 3)),
        }
        trials.append(trial(number, params["lr"] + 0.2 * (params["kind"] == "a"), **params))
    shares = importance(space, trials)
    assert shares["lr"] > 0.4
    assert 0.05 < shares["kind"] < shares["lr"]
    assert max(shares["other"], shares["choice"]) < 0.05
    assert [one.name for one in slices(space, trials)][:2] == ["lr", "kind"]
    assert importance(space, trials[:7]) == {}, "of seven trials nothing can be told"
    assert importance(space, [trial(i, 0.5, **t.params) for i, t in enumerate(trials)]) == {}, "all are as good"


def test_pruned_trials_are_drawn_and_do_not_count() -> None:
    trials = [
        trial(0, 0.5, lr=1),
        trial(1, 0.9, PRUNED, lr=2),
        trial(2, None, JobState.FAILED, lr=3),
        trial(3, 0.7, lr=3),
    ]
    [one] = slices({"lr": (1, 2, 3)}, trials)
    assert [(dot.trial.number, round(dot.x, 2), round(dot.y, 2)) for dot in one.dots] == [
        (0, 0.17, 0),
        (1, 0.5, 1),
        (3, 0.83, 0.5),
    ]
    chart = best_so_far(trials, "accuracy")
    assert chart.lines == [("best so far", [0.5, 0.5, 0.5, 0.7]), ("each trial", [0.5, None, None, 0.7])]
    assert best_so_far(trials, "loss").lines[0][1] == [0.5, 0.5, 0.5, 0.5]
