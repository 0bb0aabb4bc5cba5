"""How a module's forward takes what an example has: by the names of its parameters, by position, or as one dict."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from keyword import iskeyword
from typing import Any, Literal

import torch
from torch import Tensor, nn

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown

Call = Literal["names", "positions", "dict"]


def parameters_of(module: nn.Module) -> list[inspect.Parameter]:
    return [*inspect.signature(module.forward).parameters.values()]


def call_of(module: nn.Module, example: Any) -> Call:
    """How forward gets its inputs. A dict goes to its only parameter when none of the keys is the name of a parameter."""
    parameters = parameters_of(module)
    kinds = {p.kind for p in parameters}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY}:
        return "positions"
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    known = {p.name for p in parameters} & {*map(str, example)} if isinstance(example, Mapping) else {"it"}
    return "dict" if len(required) == 1 and inspect.Parameter.VAR_KEYWORD not in kinds and not known else "names"


def tensors_of(module: nn.Module, example: Any, call: Call) -> dict[str, Tensor]:
    """One sample's inputs by the names of forward's parameters, in their order; by its own keys for one that takes a dict."""
    parameters = {p.name: p for p in parameters_of(module)}
    if not isinstance(example, Mapping):
        first = next(iter(parameters.values()), None)
        if first is None or first.kind is first.VAR_KEYWORD:
            raise InvalidInput("its forward names no input: give a dict, example={'x': …}")
        name = "x" if first.kind is first.VAR_POSITIONAL else first.name
        example = {name: example}
    unnamed = next((name for name in example if not str(name).isidentifier() or iskeyword(str(name))), None)
    if unnamed is not None:
        raise InvalidInput(f"example: {shown(unnamed)} cannot name an input; use letters, digits and _")
    given = {str(name): _tensor(str(name), value) for name, value in example.items()}
    if not given:
        raise InvalidInput("example: a dict without an input")
    if call == "dict":
        return given
    kinds = {p.kind: name for name, p in parameters.items()}
    unknown = [name for name in given if name not in parameters]
    if unknown and not kinds.keys() & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}:
        raise InvalidInput(f"example: forward has no parameter {shown(unknown[0])}; it takes {', '.join(parameters)}")
    missing = [
        name for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and name not in given
    ]  # fmt: skip
    if missing:
        raise InvalidInput(
            f"example: forward takes {', '.join(parameters)}; name each that it needs: example={{{missing[0]!r}: …}}"
        )
    places = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    filled = [name for name in places if name in given]
    if call == "positions" and (filled != places[: len(filled)] or (unknown and len(filled) < len(places))):
        raise InvalidInput(
            f"example: forward takes inputs by their position; give them from the first on: {', '.join(places)}"
        )
    return {name: given[name] for name in (*(n for n in parameters if n in given), *unknown)}


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        return torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise InvalidInput(
            f"example: input {shown(name)} is a {kind} that makes no tensor ({error}); a module takes tensors"
        ) from error


def keywords_of(module: nn.Module, names: Iterable[str], call: Call) -> set[str]:
    """Which of these inputs are given to forward by their names."""
    if call == "names":
        return {*names}
    parameters = {p.name: p.kind for p in parameters_of(module)}
    others = () if inspect.Parameter.VAR_POSITIONAL in parameters.values() else {*names} - {*parameters}
    return {name for name in names if parameters.get(name) is inspect.Parameter.KEYWORD_ONLY or name in others}
