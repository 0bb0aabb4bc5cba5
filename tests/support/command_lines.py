"""Command lines of `forebay`, as files and pages show them, taken down the CLI without being run."""

from typing import Any

import typer


def parse(words: list[str]) -> None:
    """Take the words down the CLI's tree as running them would, and run nothing; a usage error is raised."""
    from forebay.cli.root import app

    command: Any = typer.main.get_command(app)
    name, args, context = "forebay", words, None
    while True:
        context = command.make_context(name, list(args), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        name, command, args = command.resolve_command(context, [*context._protected_args, *context.args])
