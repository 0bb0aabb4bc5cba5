"""The page of the command line: the commands themselves, as Typer knows them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from forebay.cli.root import app

HEAD = """
# Command line

Every command of `forebay`, for whoever works in a shell. `--help` after a command shows the same. Data goes to stdout, notes and
progress to stderr. The exit status is 0 when all went well, 1 for a failed job or service, 2 for what was asked wrongly, 130
after Ctrl-C and 141 for a closed pipe.
"""
VALUES = {"int": "N", "float": "N", "str": "TEXT", "path": "PATH"}
NOTES = re.compile(r"^(.*?)(?:  \[(.*)\])?$", re.DOTALL)


def cli() -> str:
    """The page of the command line."""
    sections, contents = [], []
    for context, command in commands():
        path = context.command_path
        level = len(path.split())
        contents.append(f"{'  ' * (level - 2)}- [`{path}`](#{path.replace(' ', '-')}): {_first(command.help)}")
        sections.append(_section(path, context, command))
    return "\n\n".join([HEAD.strip(), "\n".join(contents), *sections])


def commands() -> Iterator[tuple[Any, Any]]:
    """Each command and group below `forebay` with its context, a group before its commands."""
    root: Any = typer.main.get_command(app)
    return _below(typer.Context(root, info_name="forebay"), root)


def _below(context: Any, group: Any) -> Iterator[tuple[Any, Any]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if not command.hidden:
            inner = typer.Context(command, info_name=name, parent=context)
            yield inner, command
            if hasattr(command, "list_commands"):
                yield from _below(inner, command)


def _first(help: str) -> str:
    return " ".join(help.split("\n\n")[0].split())


def _section(path: str, context: Any, command: Any) -> str:
    parts = [f"{'#' * len(path.split())} {path}", command.help.strip()]
    if not hasattr(command, "list_commands"):
        shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
        arguments = [p for p in shown if p.param_type_name == "argument"]
        usage = [
            path,
            *(["[OPTIONS]"] if len(shown) > len(arguments) else []),
            *(_named(p, context) for p in arguments),
        ]
        parts.append(f"```text\n{' '.join(usage)}\n```")
        parts.append("\n".join(_parameter(p, context) for p in [*arguments, *(p for p in shown if p not in arguments)]))
    if command.epilog:
        parts.append(command.epilog.strip())
    return "\n\n".join(part for part in parts if part)


def _named(parameter: Any, context: Any) -> str:
    """Its name, or names, and what stands for its value; in brackets if it is an argument that may be left out."""
    text, argument = parameter.get_help_record(context)[0], parameter.param_type_name == "argument"
    text = re.sub(r" <(\w+)[^>]*>$", lambda kind: "" if argument else f" {VALUES[kind[1]]}", text)
    return f"[{text}]" if argument and not parameter.required and text[0] != "[" else text


def _parameter(parameter: Any, context: Any) -> str:
    found = NOTES.match(parameter.get_help_record(context)[1])
    help, notes = (found[1], found[2] or "") if found else ("", "")
    for note in filter(None, notes.split("; ")):
        text = re.sub(r"^default: \(?(.*?)\)?$", r"default: \1", note)
        help += f" {text[0].upper()}{text[1:]}."
    return f"- `{_named(parameter, context)}`: {help}"
