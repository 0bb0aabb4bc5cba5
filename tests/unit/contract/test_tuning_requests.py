"""What may be searched: ranges and lists of values, held against the parameters of the recipe."""

from typing import Any

import pytest

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.request import decode, encode
from forebay.contract.requests.training import TrainRequest
from forebay.contract.requests.tuning import Range, TuneRequest, check_space, combination, contains, space_size


def test_values_become_what_the_parameter_holds() -> None:
    given = {
        "lr": {"low": 1, "high": 10, "log": True}, "hidden": ["32", "64,32", 16], "normalize": ["true", "no"],
        "epochs": {"low": 5, "high": 20, "step": 5}, "precision": [32, "bf16-mixed"],
        "dropout": {"low": 0, "high": 0.5, "step": 0.1},
    }  # fmt: skip
    space = check_space("classifier", given, {})
    assert space == {
        "lr": Range(1.0, 10.0, True), "hidden": ([32], [64, 32], [16]), "normalize": (True, False),
        "epochs": Range(5, 20, step=5), "precision": ("32", "bf16-mixed"), "dropout": Range(0.0, 0.5, step=0.1),
    }  # fmt: skip
    assert not space["lr"].whole  # type: ignore[union-attr]
    request = TuneRequest(TrainRequest("classifier", (), "csv"), space)
    assert decode(encode(request), TuneRequest) == request, "a number that is whole stays a number"
    assert (space_size(space), request.planned) == (None, 20)
    del space["lr"]
    every = [combination(space, i) for i in range(3 * 2 * 4 * 2 * 6)]
    assert len({str(one) for one in every}) == space_size(space) == len(every)
    assert all(contains(space, one) for one in every)
    assert {one["dropout"] for one in every} == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5}


def test_a_trial_has_the_given_parameters_its_own_and_no_alias() -> None:
    train = TrainRequest("classifier", (), "csv", params={"epochs": 7}, alias="champion")
    trial = TuneRequest(train, {"hidden": ([32], [64])}).trial({"hidden": [64]})
    assert (trial.params["epochs"], trial.params["hidden"], trial.params["lr"], trial.alias) == (7, (64,), 0.001, None)


def test_parameters_of_a_recipe_that_only_a_worker_knows_pass_as_they_are() -> None:
    given = {"depth": {"low": 1, "high": 3}, "kind": ["a", {"b": [1]}], "lr": [0.1]}
    assert check_space("shop:Recipe", given, {}) == {"depth": Range(1, 3), "kind": ("a", {"b": [1]}), "lr": (0.1,)}


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "space: give the parameters that are searched, such as"),
        ([], "space: give the parameters that are searched, such as"),
        ({"nope": [1]}, "space: recipe 'classifier' has no parameter 'nope'; there are epochs, batch_size"),
        ({"lr": 3}, "space: lr: give a range or a list of 1 to 1000 values"),
        ({"lr": []}, "space: lr: give a range or a list of 1 to 1000 values"),
        ({"lr": [1, 1.0]}, "space: lr: 1.0 is there twice"),
        ({"lr": [None]}, "space: lr: expected a number, from 1e-12 to 1,000, got None"),
        ({"lr": {"low": 0.1}}, "space: lr: a range has low and high, and may have log or step"),
        ({"lr": {"low": "a", "high": 2}}, "space: lr: a range has low and high"),
        ({"lr": {"low": 2, "high": 1}}, "space: lr: low 2 is not below high 1"),
        ({"lr": {"low": 0.1, "high": float("inf")}}, "space: lr: low, high and step are finite numbers"),
        ({"lr": {"low": 0, "high": 1, "log": True}}, "space: lr: with log, low is above 0"),
        ({"lr": {"low": 0, "high": 1}}, "space: lr: expected a number, from 1e-12 to 1,000, got 0.0"),
        ({"lr": {"low": 1, "high": 1e4}}, "space: lr: expected a number, from 1e-12 to 1,000, got 10000.0"),
        ({"lr": {"low": 1, "high": 2, "step": 3}}, "space: lr: step 3 is above 0, at most high - low"),
        ({"epochs": {"low": 1.5, "high": 3}}, "space: epochs: expected a whole number, from 1 to 1,000,000, got 1.5"),
        ({"epochs": {"low": 1, "high": 3, "step": 0.5}}, "space: epochs: expected a whole number, from 1 to 1,000,000, got 1.5"),
        ({"hidden": {"low": 1, "high": 3}}, "space: hidden: it is whole numbers such as 64,32"),
        ({"optimizer": ["adam", "adamx"]}, "space: optimizer: expected one of adam, adamw, gd, sgd, got 'adamx'"),
        ({"loss": ["mse"]}, "space: loss: recipe 'classifier' lowers cross-entropy or bce, not 'mse'"),
        ({"batch_size": [8]}, "batch_size is in params and in space; give it in one of them"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_by_name(space: Any, words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_space("classifier", space, {"batch_size": 16})
    assert str(refused.value).startswith(words)


def test_what_makes_another_model_of_it_is_not_searched() -> None:
    for recipe, space in (("finetune-text", {"base": ["a/1", "b/1"]}), ("trees", {"task": ["classes", "numbers"]})):
        with pytest.raises(InvalidInput, match="cannot be searched"):
            check_space(recipe, space, {})
