"""The producer's commands: `predict`, `batch`, `train`, `evaluate`, `models`, `jobs`, `keys` and others."""

from __future__ import annotations

from importlib import import_module

import typer

# By the names of the commands: the modules that add each to `root`, in the order of the help.
MODULES = {
    "predict": ("predict",), "batch": ("batch",), "train": ("train",), "tune": ("tune",), "evaluate": ("evaluate",),
    "explain": ("explain",), "recipes": ("train",), "jobs": ("jobs",),
    "models": ("models.registry", "models.benchmark", "models.compress", "models.convert", "models.drift"),
    "queues": ("queues",), "keys": ("keys",),
}  # fmt: skip


def attach(app: typer.Typer, *names: str) -> None:
    """Add these commands to `app`, or all. No others are imported: `forebay worker` and its like need none of them."""
    for module in dict.fromkeys(module for name in names or MODULES for module in MODULES[name]):
        import_module(f"{__name__}.{module}")
    from forebay.producer.cli.commands import root

    app.add_typer(root)
