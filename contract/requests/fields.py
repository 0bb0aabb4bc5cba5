"""The fields of a request as people see them: what each is for, what it may be, and its default.

Types, limits and descriptions stand once, at the Struct's own fields (`msgspec.Meta`). Checks of what a user gives, the options
of a command and the tables of the documentation are made from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

import msgspec
from msgspec import inspect

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown

T = TypeVar("T", bound=msgspec.Struct)

_PATH = re.compile(r"(?P<reason>.*) - at `(?:key` in `)?\$\.?(?P<path>.*)`", re.DOTALL)
_NAMES = {
    inspect.IntType: "a whole number", inspect.FloatType: "a number", inspect.BoolType: "true or false",
    inspect.StrType: "text", inspect.DictType: "a mapping",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `type` is what it holds when it is not None; `title` says what it may be where its type does not."""

    name: str
    type: inspect.Type
    default: Any
    help: str
    title: str | None = None

    @property
    def expected(self) -> str:
        """What it may be, in words."""
        return self.title or _expected(self.type)

    @property
    def default_text(self) -> str:
        """The default as a user would write it; 'none' when there is none."""
        value = self.default
        if isinstance(value, list | tuple):
            return ",".join(map(str, value)) or "none"
        if isinstance(value, bool | str):
            return str(value).lower()
        return "none" if value in (None, {}) else f"{value:g}" if isinstance(value, float) else str(value)

    def read(self, value: Any) -> Any:
        """`value`, from text as a command line gives it where it is text."""
        if isinstance(self.type, inspect.LiteralType):
            return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(self.type, inspect.VarTupleType):
            return _listed(value, self.type.item_type)
        return _number(value, self.type)


@cache
def fields_of(kind: type[msgspec.Struct]) -> Mapping[str, Field]:
    """The fields of a Struct by their names, in their order."""
    described = cast(inspect.StructType, inspect.type_info(kind))
    return {field.name: _field(field) for field in described.fields}


def check(given: Mapping[str, Any], kind: type[T], *, text: bool = False) -> T:
    """The Struct that a user's values make; InvalidInput names the field, what it may be, and the value.

    With `text`, values may be text as a command line gives it.
    """
    fields = fields_of(kind)
    unknown = next((name for name in given if name not in fields), None)
    if unknown is not None:
        raise InvalidInput(f"there is no {shown(unknown)}; there are {', '.join(fields)}")
    values = {name: fields[name].read(value) for name, value in given.items()} if text else given
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(_explained(error, given, kind)) from error


def _field(field: inspect.Field) -> Field:
    extra: dict[str, Any] = {}
    kind = field.type
    while isinstance(kind, inspect.Metadata | inspect.UnionType):
        if isinstance(kind, inspect.Metadata):
            extra |= kind.extra_json_schema or {}
            kind = kind.type
        else:
            [kind] = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return Field(field.name, kind, default, extra.get("description", ""), extra.get("title"))


def _expected(kind: inspect.Type) -> str:
    match kind:
        case inspect.LiteralType():
            return f"one of {', '.join(map(str, kind.values))}"
        case inspect.StructType():
            return f"a mapping with {', '.join(field.name for field in kind.fields)}"
        case inspect.VarTupleType(item_type=inspect.IntType() as item):
            limits = _limits(item)
            return f"whole numbers such as 64,32{', each' if limits else ''}{limits}"
        case inspect.VarTupleType():
            return "names such as city,color"
        case inspect.IntType() | inspect.FloatType():
            limits = _limits(kind)
            return f"{_NAMES[type(kind)]}{',' if limits else ''}{limits}"
    return _NAMES[type(kind)]


def _limits(kind: inspect.IntType | inspect.FloatType) -> str:
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "to below"}
    limits = [(word, getattr(kind, name)) for name, word in words.items() if getattr(kind, name) is not None]
    return "".join(f" {word} {f'{limit:g}' if 0 < abs(limit) < 1e-4 else f'{limit:,.12g}'}" for word, limit in limits)


def _explained(error: msgspec.ValidationError, given: Mapping[str, Any], kind: type[msgspec.Struct]) -> str:
    found = _PATH.fullmatch(str(error))
    if found is None:  # of the whole, such as a field that is missing
        return str(error)
    name, *inner = re.findall(r"[^.\[\]]+", found["path"])
    field, value = fields_of(kind)[name], given[name]
    if isinstance(error.__cause__, InvalidInput):  # from the field's own Struct, which says what is wrong with it
        return f"{name}: {found['reason']}"
    if isinstance(field.type, inspect.StructType) and isinstance(value, Mapping):
        if not inner:
            return f"{name}: {found['reason']}; expected {field.expected}"
        field, value = fields_of(field.type.cls)[inner[0]], value[inner[0]]
    return f"{found['path']}: expected {field.expected}, got {shown(value)}"


def _listed(value: Any, item: inspect.Type) -> Any:
    if isinstance(value, str):
        value = [part.strip() for part in value.strip().strip("[]").split(",") if part.strip()]
    elif isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    return [_number(one, item) for one in value] if isinstance(value, list | tuple) else value


def _number(value: Any, kind: inspect.Type) -> Any:
    """Text as the number or truth that it writes; anything else, and other text, as it is."""
    if not isinstance(value, str) or not isinstance(kind, inspect.IntType | inspect.FloatType | inspect.BoolType):
        return value
    word = value.strip().lower()
    try:
        return msgspec.convert({"yes": "true", "no": "false"}.get(word, word), _PLAIN[type(kind)], strict=False)
    except msgspec.ValidationError:
        return value


_PLAIN: Mapping[type[inspect.Type], type] = {inspect.IntType: int, inspect.FloatType: float, inspect.BoolType: bool}
