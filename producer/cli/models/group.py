"""The group of commands under `forebay models`, which each module beside this one adds to."""

from __future__ import annotations

import typer

from forebay.producer.cli.commands import root

models_app = typer.Typer(help="Register models, find their versions, move aliases.", no_args_is_help=True)
root.add_typer(models_app, name="models")
