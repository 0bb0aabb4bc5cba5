"""The producer's commands: `predict`, `batch`, `train`, `evaluate`, `models`, `jobs` and others."""

from __future__ import annotations

from importlib import import_module

import typer

MODULES = ("predict", "batch", "train", "evaluate", "queues")  # each adds its commands to `root`, in this order


def attach(app: typer.Typer) -> None:
    """Add them to `app`. They are imported here, not before: `forebay worker` and its like need none of them."""
    for name in MODULES:
        import_module(f"{__name__}.{name}")
    from forebay.producer.cli.commands import root
    from forebay.producer.cli.jobs import jobs_app
    from forebay.producer.cli.models import models_app

    app.add_typer(root)
    app.add_typer(jobs_app, name="jobs")
    app.add_typer(models_app, name="models")
