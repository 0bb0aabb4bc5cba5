"""How commands are made: their examples, and options that come from a declaration elsewhere instead of the command itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import Annotated, Any

import typer
from msgspec import NODEFAULT, Meta, Struct
from msgspec import inspect as types

from forebay.contract.job import JobKind
from forebay.contract.requests.fields import Field, fields_of
from forebay.producer.cli.options import (
    Connect,
    Home,
    Json,
    Metadata,
    NoWait,
    Timeout,
    countdown,
    deadline,
    open_client,
    option,
    pairs,
)
from forebay.producer.cli.output import clear_errors
from forebay.producer.cli.views.results import J, Show, print_outcome, wait_and_show
from forebay.producer.options import DEFAULTS, Defaults

Command = Callable[..., Any]

root = typer.Typer()  # the commands that are in no group

_TYPES: dict[type[types.Type], type] = {types.IntType: int, types.FloatType: float, types.BoolType: bool}

SUBMIT_OPTIONS: Mapping[str, Any] = {
    "priority": Annotated[int, typer.Option(metavar="0-9", help="0 comes first.")],
    "queue": Annotated[str | None, option("QUEUE", "Use this queue.", default="the smallest that fits")],
    "deadline": Annotated[str | None, option("TIME", "Start by then or expire: 15m, or a date.")],
    "max_attempts": Annotated[int, typer.Option(metavar="N", help="How often it, or a shard, may be started.")],
    "idempotency_key": Annotated[str | None, option("KEY", "The same key never makes a second job.")],
    "metadata": Metadata,
}


class ResourceOptions(Struct):
    """What a machine needs to run a model version."""

    gpu: Annotated[float | None, Meta(description="GPUs it needs")] = None
    gpu_memory: Annotated[str | None, Meta(description="GPU memory it needs: 2GiB")] = None
    cpu: Annotated[float | None, Meta(description="CPU cores it needs")] = None
    memory: Annotated[str | None, Meta(description="memory it needs: 500MB")] = None


def command(app: typer.Typer, *examples: str, name: str | None = None) -> Callable[[Command], Command]:
    """A command of `app` whose help ends with examples and whose errors are one line on stderr.

    The function's parameter `connect` is no option: it opens the client, which is closed when the function ends. `as_json` is
    `--json`.
    """
    epilog = "\n".join(("Examples:\n", *(f"- `{example}`" for example in examples)))  # as Markdown

    def decorate(function: Command) -> Command:
        parameters = dict(inspect.signature(function, eval_str=True).parameters)
        connects = parameters.pop("connect", None) is not None

        @wraps(function)
        def run(**given: Any) -> None:
            if not connects:
                function(**given)
                return
            home = given.pop("home")
            with ExitStack() as stack:
                function(connect=lambda: stack.enter_context(open_client(home)), **given)

        prints_json = parameters.pop("as_json", None) is not None
        shared = [_option("home", Home, None)] if connects else []
        shared += [_option("as_json", Json, False)] if prints_json else []
        app.command(name, epilog=epilog)(clear_errors()(_with_parameters(run, [*parameters.values(), *shared])))
        return function

    return decorate


def job_command(
    kind: JobKind, *examples: str, show: Show[J], show_json: Show[J] = print_outcome, app: typer.Typer = root
) -> Callable[[Callable[..., J]], Command]:
    """A command that submits one job, waits for it unless told not to, and shows it. The function gets a client and what was
    given, `options` of the submit among it, and returns the job.
    """  # fmt: skip

    def decorate(function: Callable[..., J]) -> Command:
        submit = with_submit_options(kind)(function)

        @wraps(submit)
        def run(connect: Connect, as_json: bool, timeout: str | None, no_wait: bool, **given: Any) -> None:
            left, client = countdown(timeout), connect()
            job = submit(client=client, **given)
            wait_and_show(client, job, left(), show_json if as_json else show, no_wait=no_wait, as_json=as_json)

        own = [one for one in inspect.signature(submit).parameters.values() if one.name != "client"]
        shared = [_option(name, Any, None) for name in ("connect", "as_json")]
        waiting = [_option("no_wait", NoWait, False), _option("timeout", Timeout, None)]
        return command(app, *examples)(_with_parameters(run, [*own, *waiting, *shared]))

    return decorate


def with_submit_options(kind: JobKind) -> Callable[[Command], Command]:
    """Give a command the options of every submit in the place of its parameter `options`, which receives their values."""
    defaults = DEFAULTS.get(kind, Defaults())._asdict()

    def read(values: dict[str, Any]) -> dict[str, Any]:
        return values | {"deadline": deadline(values["deadline"]), "metadata": pairs(values["metadata"], "--metadata")}

    options = [_option(name, type, defaults.get(name)) for name, type in SUBMIT_OPTIONS.items()]
    return lambda function: _expand(function, "options", options, read)


def request_options(
    parameter: str, kind: type[Struct], *, only: Collection[str] | None = None, without: Collection[str] = ()
) -> Callable[[Command], Command]:
    """Give a command an option for each field of `kind` in the place of its `parameter`, which receives what was given, by name.

    Names, types, help and defaults are those of the Struct. The fields of a nested Struct have its name before theirs:
    `--split-test`.
    """
    chosen = {name: f for name, f in fields_of(kind).items() if name not in without and (only is None or name in only)}
    fields = {"_".join(path): (path, field) for f in chosen.values() for path, field in _flattened(f, ())}

    def read(values: dict[str, Any]) -> dict[str, Any]:
        asked: dict[str, Any] = {}
        for given, value in _given(values).items():
            (*above, name), field = fields[given]
            inner = asked.setdefault(above[0], {}) if above else asked
            inner[name] = field.read(value)
        return asked

    options = [_parameter(path, field) for path, field in fields.values()]
    return lambda function: _expand(function, parameter, options, read)


def _expand(
    function: Command, parameter: str, options: Sequence[inspect.Parameter], read: Callable[[dict[str, Any]], Any]
) -> Command:
    """`function` with `options` in the place of one parameter, which receives what `read` makes of their values."""

    @wraps(function)
    def run(**given: Any) -> Any:
        values = {option.name: given.pop(option.name) for option in options}
        return function(**given, **{parameter: read(values)})

    parameters: list[inspect.Parameter] = []
    for own in inspect.signature(function, eval_str=True).parameters.values():
        parameters += options if own.name == parameter else [own]
    return _with_parameters(run, parameters)


def _with_parameters(run: Command, parameters: Sequence[inspect.Parameter]) -> Command:
    keyword_only = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    run.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in keyword_only}
    return run


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _flattened(field: Field, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Field]]:
    path = (*above, field.name)
    if isinstance(field.type, types.StructType):
        for inner in fields_of(field.type.cls).values():
            yield from _flattened(inner, path)
    else:
        yield path, field


def _parameter(path: tuple[str, ...], field: Field) -> inspect.Parameter:
    flag, required = "-".join(path).replace("_", "-"), field.default is NODEFAULT
    names = f"--{flag}/--no-{flag}" if isinstance(field.type, types.BoolType) else f"--{flag}"
    help_ = f"{field.help[0].upper()}{field.help[1:]}" + (f": {field.title}" if field.title else "")
    shown: str | bool = False if required or field.default_text == "none" else field.default_text
    option = typer.Option(names, metavar=_metavar(field), help=f"{help_}.", show_default=shown)
    value = _TYPES.get(type(field.type), str)
    return inspect.Parameter(
        "_".join(path),
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else None,
        annotation=Annotated[value if required else value | None, option],
    )


def _metavar(field: Field) -> str | None:
    match field.type:
        case types.BoolType():
            return None
        case types.IntType() | types.FloatType():
            return "N"
        case types.VarTupleType():
            return "NAMES"
    return field.name.rpartition("_")[2].upper()
