"""What a training job may be told: each parameter as given or by default, and the rest refused in words that help."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.recipes import (
    LOOP,
    RECIPES,
    Param,
    check_metric,
    check_params,
    default_metric,
    metrics_of,
)
from forebay.contract.requests.training import METRICS

DOCS = Path(__file__).resolve().parents[2] / "docs" / "training.md"
ALL = [*LOOP, *(param for recipe in RECIPES.values() for param in recipe.params)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_without_parameters_every_one_has_its_default(recipe: str) -> None:
    made = check_params(recipe, {})
    assert made == {param.name: param.default for param in (*LOOP, *RECIPES[recipe].params)}


@pytest.mark.parametrize("param", ALL, ids=lambda param: param.name)
def test_a_default_is_a_legal_value_also_as_text(param: Param) -> None:
    assert param.check(param.default) == param.default
    text = ",".join(map(str, param.default)) if isinstance(param.default, tuple) else str(param.default)
    assert param.check(text) == param.default


def test_what_a_command_line_gives_becomes_numbers_and_lists() -> None:
    made = check_params("classifier", {"epochs": "5", "lr": "1e-2", "hidden": "64, 32", "normalize": "no"})
    assert (made["epochs"], made["lr"], made["hidden"], made["normalize"]) == (5, 0.01, (64, 32), False)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"epochs": 0}, "'epochs': expected a whole number, from 1 to 1,000,000, got 0"),
        ({"epochs": 1.5}, "'epochs'.*1.5"),
        ({"epochs": True}, "'epochs'.*True"),
        ({"lr": "fast"}, "'lr'.*'fast'"),
        ({"lr": float("nan")}, "'lr'.*nan"),
        ({"optimizer": "adagrad"}, "'optimizer': expected one of gd, sgd, adam, adamw, got 'adagrad'"),
        ({"hidden": [8, 0]}, "'hidden'.*each from 1"),
        ({"hidden": {"a": 1}}, "'hidden'"),
        ({"normalize": 1}, "'normalize': expected true or false, got 1"),
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
    with pytest.raises(InvalidInput, match="'epochs'"):
        check_params("theirs", {"epochs": -1})


@given(st.sampled_from(ALL), st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)))
def test_any_value_is_either_refused_or_stays_what_it_was_made_when_checked_again(param: Param, value: object) -> None:
    try:
        made = param.check(value)
    except InvalidInput:
        return
    assert param.check(made) == made


def test_a_metric_is_the_recipes_own_or_one_that_its_task_has() -> None:
    assert check_metric("regressor", None) == "r2" == default_metric("regressor")
    assert check_metric("classifier", "f1") == "f1"
    assert check_metric("theirs", None) == "loss"
    with pytest.raises(
        InvalidInput, match="'regressor' cannot be judged by 'accuracy'; choose one of loss, mae, rmse, r2"
    ):
        check_metric("regressor", "accuracy")
    assert {*metrics_of("classes"), *metrics_of("numbers")} == set(METRICS)


def as_text(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return f"{default:g}" if isinstance(default, float) else str(default).lower()


@pytest.mark.parametrize("recipe", [None, "classifier", "image-classifier", "sequence-classifier"])
def test_the_docs_have_every_parameter_as_the_table_has_it(recipe: str | None) -> None:
    params = LOOP if recipe is None else RECIPES[recipe].params
    rows = "\n".join(
        f"| `{param.name}` | {as_text(param.default)} | {param.expected} | {param.help} |" for param in params
    )
    assert rows + "\n\n" in DOCS.read_text(encoding="utf-8")


def test_the_docs_say_what_regressor_has_otherwise_than_classifier() -> None:
    one, other = (RECIPES[name].params for name in ("regressor", "classifier"))
    assert [param.name for param, like in zip(one, other, strict=True) if param != like] == ["hidden"]
