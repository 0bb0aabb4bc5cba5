"""The page of Python: what `forebay` exports, and the classes that one comes to through it, from their source and docstrings."""

from __future__ import annotations

import ast
import enum
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, get_origin, get_type_hints, is_typeddict

from docs.generate.text import ERRORS
from msgspec import Struct

import forebay
from forebay.contract.requests.evaluation import EvaluateRequest
from forebay.contract.requests.explain import ExplainRequest
from forebay.contract.requests.fields import fields_of
from forebay.contract.requests.training import TrainRequest
from forebay.contract.requests.tuning import TuneRequest
from forebay.contract.requests.versions.benchmark import BenchmarkRequest
from forebay.contract.requests.versions.compress import CompressRequest
from forebay.contract.requests.versions.convert import ConvertRequest
from forebay.producer.async_client import AsyncModels, AsyncRetraining
from forebay.producer.models import Models
from forebay.producer.retraining import Retraining

HEAD = """
# Python

What `import forebay` gives, for whoever writes a program. Only what a section says to import is meant to be imported; the other
classes are those of arguments and results. [The client](../how-to/call-a-model.md) shows how they are used.
[Errors](errors.md) has the exceptions, [Settings](settings.md) the fields of `Settings`.
"""
# Attributes of the clients, which are set in `__init__`.
ATTRIBUTES = {
    "Client.models": Models,
    "Client.retraining": Retraining,
    "AsyncClient.models": AsyncModels,
    "AsyncClient.retraining": AsyncRetraining,
}
# What Forebay's own parts call.
INTERNAL = {"clear_outcome", "forget_future", "has_inline_result", "set_outcome", "submitting_for", "why_late"}
REQUESTS: dict[str, type[Struct]] = {
    "TrainOptions": TrainRequest,
    "TuneOptions": TuneRequest,
    "ExplainOptions": ExplainRequest,
    "EvaluateOptions": EvaluateRequest,
    "BenchmarkOptions": BenchmarkRequest,
    "CompressOptions": CompressRequest,
    "ConvertOptions": ConvertRequest,
}
WIDTH = 100


def python() -> str:
    """The page of Python."""
    names = [name for name in forebay.__all__ if name not in ERRORS]
    exported = {name: getattr(forebay, name) for name in names}
    reached = _reached([kind for kind in exported.values() if inspect.isclass(kind)])
    everything = exported | {kind.__name__: kind for kind in sorted(reached, key=lambda kind: kind.__name__)}
    contents = " · ".join(f"[`{name}`](#{name.lower()})" for name in everything)
    errors = " · ".join(f"[`{name}`](errors.md#{name.lower()})" for name in forebay.__all__ if name in ERRORS)
    sections = [_section(name, value, everything) for name, value in everything.items()]
    return "\n\n".join([HEAD.strip(), contents, f"Errors: {errors}", *sections])


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class defines itself."""
    for name, value in vars(kind).items():
        callable_ = inspect.isfunction(value) or isinstance(value, classmethod | staticmethod | property)
        if callable_ and not name.startswith("_") and name not in INTERNAL:
            yield name, value


def _function(value: Any) -> Any:
    return value.fget if isinstance(value, property) else getattr(value, "__func__", value)


def fields(kind: type) -> dict[str, str]:
    """The public fields that a class declares itself, with their types."""
    inherited = (
        {name for base in _bases(kind) for name in getattr(base, "__annotations__", {})} if is_typeddict(kind) else ()
    )
    found = {
        name: text for name, text in inspect.get_annotations(kind).items() if name[0] != "_" and name not in inherited
    }
    return {name: getattr(text, "__forward_arg__", None) or str(text) for name, text in found.items()}


def _bases(kind: type) -> list[type]:
    """Its bases that are Forebay's. A TypedDict does not know them: the largest of its module whose fields it has, too."""
    if is_typeddict(kind):
        others = [one for one in vars(sys.modules[kind.__module__]).values() if is_typeddict(one) and one is not kind]
        bases = [one for one in others if one.__annotations__.items() <= kind.__annotations__.items()]
        return sorted(bases, key=lambda base: len(base.__annotations__))[-1:]
    return [base for base in kind.__bases__ if base.__module__.startswith("forebay.")]


def _reached(kinds: list[type]) -> set[type]:
    """The classes of Forebay that annotations and attributes of these lead to, and of those again."""
    seen, left = set(kinds), [*kinds, *ATTRIBUTES.values()]
    while left:
        kind = left.pop()
        seen.add(kind)
        texts = [] if kind is forebay.Settings else list(fields(kind).values())
        texts += [str(a) for _, value in members(kind) for a in _function(value).__annotations__.values()]
        for found in [*_bases(kind), *(one for text in texts for one in _classes(text, kind.__module__))]:
            if found not in seen and found.__name__ not in ERRORS:
                left.append(found)
    return seen - set(kinds)


def _classes(text: str, module: str) -> list[type]:
    found = [_named(name, module) for name in re.findall(r"\b[A-Z]\w+", _expanded(text, module))]
    return [
        one for one in found if inspect.isclass(one) and one.__module__.startswith("forebay.") and not get_origin(one)
    ]


def _named(name: str, module: str) -> Any:
    """What a name of an annotation stands for, also if it is imported for type checkers only."""
    if name in vars(sys.modules[module]):
        return vars(sys.modules[module])[name]
    home = _imports(module).get(name)
    return getattr(__import__(home, fromlist=[name]), name, None) if home else None


@cache
def _imports(module: str) -> dict[str, str]:
    nodes = ast.walk(ast.parse(inspect.getsource(sys.modules[module])))
    return {a.name: n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module for a in n.names}


def _expanded(text: str, module: str) -> str:
    """An annotation, with Forebay's names of other types, such as `Versions`, as what they stand for."""

    def expand(found: re.Match[str]) -> str:
        meant = _named(found[0], module)
        if meant is None or (inspect.isclass(meant) and not get_origin(meant)) or not _is_alias(meant):
            return found[0]
        return _plain(meant) if "~" not in str(meant) else found[0]

    return re.sub(r"\b(?<![.\"'])[A-Z]\w+\b", expand, re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text))


def _plain(hint: Any) -> str:
    """A type as one writes it, without the modules of its parts."""
    return (
        hint.__name__
        if inspect.isclass(hint) and not get_origin(hint)
        else re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", str(hint))
    )


def _is_alias(meant: Any) -> bool:
    return get_origin(meant) is not None or type(meant).__name__ == "UnionType"


def _section(name: str, value: Any, everything: dict[str, Any]) -> str:
    parts = [f"## {name}"]
    if name in forebay.__all__:
        parts.append(f"`from forebay import {name}`")
    if not inspect.isclass(value):
        return "\n\n".join([*parts, *_call(name, value, value.__module__, everything)])
    bases = [base.__name__ for base in _bases(value) if base.__name__ in everything]
    parts += [f"Base: {', '.join(f'[`{base}`](#{base.lower()})' for base in bases)}"] if bases else []
    doc = value.__doc__ if value.__doc__ and not value.__doc__.startswith(f"{name}(") else ""
    parts += [_doc(doc)] if doc else []
    if issubclass(value, enum.Enum):
        parts.append("\n".join(f"- `{one.name}`: `{one.value!r}`" for one in value))
    if (
        "__init__" in vars(value)
        and name in forebay.__all__
        and value is not forebay.Settings
        and "client" in name.lower()
    ):
        parts += _call(name, value.__init__, value.__module__, everything)
    if value is not forebay.Settings:
        parts += ["\n".join(_field(value, *field) for field in fields(value).items())] if fields(value) else []
    attributes = {key.split(".")[1]: kind.__name__ for key, kind in ATTRIBUTES.items() if key.startswith(f"{name}.")}
    parts.append("\n".join(f"- `{key}`: [`{kind}`](#{kind.lower()})" for key, kind in attributes.items()))
    for member, defined in members(value):
        parts.append(f"### {name}.{member}")
        parts += _call(member, defined, value.__module__, everything)
    return "\n\n".join(part for part in parts if part)


def _doc(text: str) -> str:
    """A docstring, with the errors that it names made links."""
    names = "|".join(sorted(ERRORS, key=len, reverse=True))
    return re.sub(
        rf"(?<![`\w.])({names})\b(?!`)", lambda e: f"[{e[0]}](errors.md#{e[0].lower()})", inspect.cleandoc(text)
    )


def _field(kind: type, name: str, text: str) -> str:
    help, meant = "", _expanded(text, kind.__module__)
    request = REQUESTS.get(kind.__name__, kind if kind in REQUESTS.values() else None)
    described = fields_of(request).get(name) if request else None
    if described:
        help = f": {described.help}" if described.help else ""
    if "Annotated[" in meant:
        meant = _plain(get_type_hints(kind)[name])
    return f"- `{name}`: `{meant}`{help}"


def _call(name: str, value: Any, module: str, everything: dict[str, Any]) -> list[str]:
    """How something is called, or for a property its type; its docstring; the classes that it names."""
    function = _function(value)
    doc = [_doc(function.__doc__)] if function.__doc__ else []
    module = inspect.unwrap(function).__module__
    texts = [str(text) for key, text in function.__annotations__.items()]
    seen = dict.fromkeys(found.__name__ for text in texts for found in _classes(text, module))
    see = [f"[`{one}`](#{one.lower()})" for one in seen if one in everything]
    links = [f"See {', '.join(see)}."] if see else []
    if isinstance(value, property):
        return [f"Property: `{_expanded(str(function.__annotations__.get('return', '')), module)}`", *doc, *links]
    return [f"```py\n{_signature(name, function, module)}\n```", *doc, *links]


def _signature(name: str, function: Any, module: str) -> str:
    signature = inspect.signature(function)
    shown, star = [], False
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            shown.append("*")
        star = star or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        mark = "*" * ((parameter.kind is parameter.VAR_POSITIONAL) + 2 * (parameter.kind is parameter.VAR_KEYWORD))
        typed = "" if parameter.annotation is parameter.empty else f": {_expanded(str(parameter.annotation), module)}"
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        shown.append(f"{mark}{parameter.name}{typed}{default}")
    result = signature.return_annotation
    end = "" if result is signature.empty or name[0].isupper() else f" -> {_expanded(str(result), module)}"
    start = f"{'async ' if inspect.iscoroutinefunction(function) else ''}{name}("
    line = f"{start}{', '.join(shown)}){end}"
    return line if len(line) <= WIDTH else start + "".join(f"\n    {one}," for one in shown) + f"\n){end}"
