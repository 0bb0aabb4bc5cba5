"""What a training job may be told: each parameter as given or by default, and the rest refused in words that help."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.fields import Field, check, fields_of
from forebay.contract.requests.recipes import (
    RECIPES,
    LoopParams,
    check_metric,
    check_params,
    default_metric,
    metrics_of,
    parameters,
)
from forebay.contract.requests.training import METRICS, Split, TrainRequest

KINDS = [LoopParams, *(recipe.params for recipe in RECIPES.values())]
ALL = [(kind, field) for kind in KINDS for field in fields_of(kind).values()]


@pytest.mark.parametrize("recipe", RECIPES)
def test_without_parameters_every_one_has_its_default(recipe: str) -> None:
    made = check_params(recipe, {})
    assert made == {name: field.default for name, field in parameters(recipe).items()}


def checked(kind: type[Struct], field: Field, value: object) -> object:
    return getattr(check({field.name: value}, kind, text=True), field.name)


@pytest.mark.parametrize(("kind", "field"), ALL, ids=lambda one: getattr(one, "name", None))
def test_a_default_is_a_legal_value_also_as_text(kind: type[Struct], field: Field) -> None:
    assert checked(kind, field, field.default) == field.default
    text = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
    assert checked(kind, field, text) == field.default


def test_what_a_command_line_gives_becomes_numbers_and_lists() -> None:
    made = check_params("classifier", {"epochs": "5", "lr": "1e-2", "hidden": "64, 32", "normalize": "no"})
    assert (made["epochs"], made["lr"], made["hidden"], made["normalize"]) == (5, 0.01, (64, 32), False)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"epochs": 0}, "epochs: expected a whole number, from 1 to 1,000,000, got 0"),
        ({"epochs": 1.5}, "epochs: .*1.5"),
        ({"epochs": True}, "epochs: .*True"),
        ({"lr": "fast"}, "lr: .*'fast'"),
        ({"lr": float("nan")}, "lr: .*nan"),
        ({"optimizer": "adagrad"}, "optimizer: expected one of adam, adamw, gd, sgd, got 'adagrad'"),
        ({"hidden": [8, 0]}, "hidden.*each from 1"),
        ({"hidden": {"a": 1}}, "hidden: "),
        ({"normalize": 1}, "normalize: expected true or false, got 1"),
        ({"learning_rate": 1}, "no parameter 'learning_rate'; there are epochs, batch_size"),
        ({"loss": "mse"}, "lowers cross-entropy or bce, not 'mse'"),
    ],
)
def test_a_bad_parameter_is_refused_with_its_value_and_what_would_do(params: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        check_params("classifier", params)


def test_a_third_partys_own_parameters_pass_through_and_the_loops_are_checked() -> None:
    assert check_params("theirs", {"depth": {"of": 3}, "epochs": "2"})["depth"] == {"of": 3}
    assert check_params("theirs", {"depth": 3, "epochs": "2"})["epochs"] == 2
    with pytest.raises(InvalidInput, match="epochs: "):
        check_params("theirs", {"epochs": -1})


@pytest.mark.parametrize("recipe", ["trees", "svm"])
def test_a_fitted_recipe_has_no_parameter_of_the_loop(recipe: str) -> None:
    with pytest.raises(InvalidInput, match=f"'{recipe}' has no parameter 'epochs'; there are task, "):
        check_params(recipe, {"epochs": 3})


@given(st.sampled_from(ALL), st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)))
def test_any_value_is_either_refused_or_stays_what_it_was_made_when_checked_again(
    param: tuple[type[Struct], Field], value: object
) -> None:
    try:
        made = checked(*param, value)
    except InvalidInput:
        return
    assert checked(*param, made) == made


def test_a_metric_is_the_recipes_own_or_one_that_its_task_has() -> None:
    assert check_metric("regressor", None, {}) == "r2" == default_metric("regressor", {})
    assert check_metric("classifier", "f1", {}) == "f1"
    assert check_metric("theirs", None, {}) == "loss"
    with pytest.raises(
        InvalidInput, match="'regressor' cannot be judged by 'accuracy'; choose one of loss, mae, rmse, r2"
    ):
        check_metric("regressor", "accuracy", {})
    assert check_metric("finetune-text", None, {}) == "perplexity"
    assert check_metric("trees", None, {"task": "numbers"}) == "r2"
    with pytest.raises(InvalidInput, match="'trees' cannot be judged by 'r2'; choose one of loss, accuracy"):
        check_metric("trees", "r2", check_params("trees", {}))
    told = {*metrics_of("classes"), *metrics_of("numbers"), *metrics_of("text")}
    assert told | {"exact_match"} == set(METRICS)  # which only an evaluation tells


@pytest.mark.parametrize("kind", [*KINDS, TrainRequest, Split], ids=lambda kind: kind.__name__)
def test_every_field_that_a_user_gives_is_described(kind: type[Struct]) -> None:
    assert all(field.help for field in fields_of(kind).values() if field.name != "split")


def test_regressor_and_classifier_differ_only_in_their_hidden_layers() -> None:
    one, other = (fields_of(RECIPES[name].params) for name in ("regressor", "classifier"))
    assert [name for name in one if one[name] != other[name]] == ["hidden"]
