"""A command's options from the fields of a request: names, types, help and defaults stand once, at the Struct itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from functools import wraps
from typing import Annotated, Any, TypeVar

import typer
from msgspec import NODEFAULT, Meta, Struct
from msgspec import inspect as types

from forebay.contract.requests.fields import Field, fields_of

Command = TypeVar("Command", bound=Callable[..., None])

_TYPES: dict[type[types.Type], type] = {types.IntType: int, types.FloatType: float, types.BoolType: bool}


class ResourceOptions(Struct):
    """What a machine needs to run a model version."""

    gpu: Annotated[float | None, Meta(description="GPUs it needs")] = None
    gpu_memory: Annotated[str | None, Meta(description="GPU memory it needs: 2GiB")] = None
    cpu: Annotated[float | None, Meta(description="CPU cores it needs")] = None
    memory: Annotated[str | None, Meta(description="memory it needs: 500MB")] = None


def request_options(
    parameter: str, kind: type[Struct], *, only: Collection[str] | None = None, without: Collection[str] = ()
) -> Callable[[Command], Command]:
    """Give a command an option for each field of `kind` in the place of its `parameter`, which receives what was given, by name.

    The fields of a nested Struct have its name before theirs: `--split-test`.
    """
    chosen = {name: f for name, f in fields_of(kind).items() if name not in without and (only is None or name in only)}

    def decorate(command: Command) -> Command:
        options = [option for field in chosen.values() for option in _options(field, ())]

        @wraps(command)
        def run(**given: Any) -> None:
            asked: dict[str, Any] = {}
            for path, field in options:
                value = given.pop("_".join(path))
                if value is not None:
                    *above, name = path
                    inner = asked.setdefault(above[0], {}) if above else asked
                    inner[name] = field.read(value)
            command(**given, **{parameter: asked})

        signature = inspect.signature(command, eval_str=True)
        parameters = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for own in signature.parameters.values()
            for one in ([_parameter(path, field) for path, field in options] if own.name == parameter else [own])
        ]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run  # type: ignore[return-value]

    return decorate


def _options(field: Field, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Field]]:
    path = (*above, field.name)
    if isinstance(field.type, types.StructType):
        for inner in fields_of(field.type.cls).values():
            yield from _options(inner, path)
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
