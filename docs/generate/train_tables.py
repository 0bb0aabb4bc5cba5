"""The tables of how-to/train.md, from the Structs that a training job is checked by.

A table stands between `<!-- table NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re

from msgspec import NODEFAULT, Struct, inspect

from forebay.contract.requests.fields import Field, fields_of
from forebay.contract.requests.learners import SvmParams, TreesParams
from forebay.contract.requests.recipes import (
    ClassifierParams,
    FinetuneParams,
    ImageParams,
    LoopParams,
    SequenceParams,
)
from forebay.contract.requests.training import TrainRequest
from forebay.contract.requests.tuning import TuneRequest

KINDS: tuple[type[Struct], ...] = (
    TrainRequest, LoopParams, ClassifierParams, ImageParams, SequenceParams, TreesParams, SvmParams, FinetuneParams,
    TuneRequest,
)  # fmt: skip
TABLES = {kind.__name__: kind for kind in KINDS}
TABLE = re.compile(r"(<!-- table (\w+) -->\n\n).*?(\n\n<!-- end -->)", re.DOTALL)
CALLED = {"files": "dataset"}  # what `Client.train` calls a field


def table(kind: type[Struct]) -> str:
    """A table of a Struct's fields, in Markdown."""
    head = ["| parameter | default | may be | |", "| --- | --- | --- | --- |"]
    return "\n".join(head + [line for field in fields_of(kind).values() for line in _lines(field, "")])


def written(text: str) -> str:
    """The document with its tables as they should be."""
    return TABLE.sub(lambda found: f"{found[1]}{table(TABLES[found[2]])}{found[3]}", text)


def _lines(field: Field, above: str) -> list[str]:
    if isinstance(field.type, inspect.StructType) and field.type.cls is TrainRequest:
        return []  # they have a table of their own
    if isinstance(field.type, inspect.StructType):
        inner = fields_of(field.type.cls).values()
        return [line for one in inner for line in _lines(one, f"{field.name}.")]
    default = "" if field.default is NODEFAULT else field.default_text
    return [f"| `{above}{CALLED.get(field.name, field.name)}` | {default} | {field.expected} | {field.help} |"]
