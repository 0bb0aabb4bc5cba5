"""The page of errors: the tree itself, with the statuses that HTTP and the command line give each."""

from __future__ import annotations

import inspect

from docs.generate.text import ERRORS, linked, listed

import forebay
from forebay.api.errors import OURS, answer_of
from forebay.contract.errors import ForebayError, Transient
from forebay.producer.cli.output import exit_status

HEAD = """
# Errors

Every error of Forebay, for whoever catches or meets one. All of them derive from [`ForebayError`](#forebayerror); the message
says what was wrong and what to do. A job that failed raises [`JobFailed`](#jobfailed) in the client, with the name of the error
in the worker as its `type`; over HTTP that is `422 job-failed`. A command that an error ends writes one line to stderr, and exits
with the status below.
"""


def errors() -> str:
    """The page of errors."""
    return "\n\n".join([HEAD.strip(), *(_section(name, kind) for name, kind in ERRORS.items())])


def _section(name: str, kind: type[ForebayError]) -> str:
    home = "forebay" if name in forebay.__all__ else kind.__module__
    lines = [f"## {name}", "", linked(inspect.getdoc(kind) or ""), ""]
    lines += [f"- Import: `from {home} import {name}`"]
    lines += [f"- Bases: {', '.join(_base(base) for base in kind.__bases__)}"]
    error = kind("")
    told = vars(error)
    lines += [f"- Attributes: {listed(told)}"] if told else []
    if issubclass(kind, Transient):
        lines += ["- Retried: a job that meets it in a worker is queued again for later"]
    answer = answer_of(error)
    if answer.status != 500:
        lines += [f"- HTTP: `{answer.status} {answer.code}`"]
    elif name in OURS:
        lines += ["- HTTP: `502 job-failed`, of a job that failed with it"]
    lines += [f"- Exit status: {exit_status(error)}"]
    return "\n".join(lines)


def _base(base: type) -> str:
    return f"[`{base.__name__}`](#{base.__name__.lower()})" if base.__name__ in ERRORS else f"`{base.__name__}`"
