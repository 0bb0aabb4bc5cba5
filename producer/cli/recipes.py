"""`forebay recipes`: what a model can be trained by, and what each recipe can be told."""

from __future__ import annotations

from typing import Annotated

import typer

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.recipes import LOOP, RECIPES, Param, metrics_of
from forebay.producer.cli.options import Json, examples
from forebay.producer.cli.output import clear_errors, print_json, print_table, write

EXAMPLES = examples("forebay recipes", "forebay recipes image-classifier", "forebay recipes --json")


@clear_errors()
def recipes(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Only this one's.", show_default="all")] = None,
    as_json: Json = False,
) -> None:
    """List the recipes, their parameters and the metrics they may be judged by.

    Recipes that others have added are not known here; they have the parameters of the training loop, and their own.
    """
    if recipe is not None and recipe not in RECIPES:
        raise InvalidInput(f"there is no recipe {shown(recipe)}; there are {', '.join(RECIPES)}")
    if as_json:
        chosen = [r for r in RECIPES.values() if recipe in (None, r.name)]
        print_json({"loop": LOOP, "recipes": chosen})
        return
    print_recipes(recipe)


def print_recipes(only: str | None = None) -> None:
    chosen = [r for r in RECIPES.values() if only in (None, r.name)]
    rows = [(r.name, r.metric, ", ".join(metrics_of(r.task)), r.help) for r in chosen]
    print_table(("RECIPE", "JUDGED BY", "METRICS", "IT TELLS"), rows)
    write("")
    params = [*(_row(r.name, param) for r in chosen for param in r.params), *(_row("every recipe", p) for p in LOOP)]
    print_table(("OF", "PARAMETER", "DEFAULT", "VALUES", "WHAT IT IS"), params)


def _row(owner: str, param: Param) -> tuple[str, str, str, str, str]:
    default = param.default
    text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default).lower()
    return owner, param.name, text or "none", param.expected, param.help
