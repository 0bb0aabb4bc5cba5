"""The one schema that all parts of a batch have: kept columns by what all its files hold, and the declared outputs.

It is decided before the first shard. Outputs that the model does not declare come to it with the first ones that there are.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pyarrow as pa
import pyarrow.parquet as pq

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import ARROW, CSV, MEDIA, NPY, NPZ, OPENAI, PARQUET, BatchRequest, InputFile
from forebay.contract.signature import Signature
from forebay.datasets.columns import output_column
from forebay.datasets.formats.media import PATH
from forebay.datasets.formats.source import Sample, get_source
from forebay.datasets.widening import plain_type, settled, widened
from forebay.datasets.writing.part_files import check_csv

KEPT = {"int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_(), "string": pa.string()}
FILE = "file"
_TYPED = (PARQUET, ARROW, NPY, NPZ)  # formats whose files say which types their columns have
_AT_ONCE = 64  # files that are looked at together


class KeptTypes:
    """The types of the kept columns over the files seen so far."""

    def __init__(self, keep: Sequence[str]) -> None:
        self._keep = keep
        self._found: dict[str, tuple[pa.DataType, str]] = {}

    def add(self, file: InputFile, sample: Sample) -> None:
        """InvalidInput, naming both files, when no type holds what this file has and what those before it have."""
        if sample.empty:
            return
        for name in self._keep:
            given = sample.types.get(name)
            if given is None:
                continue
            kind = plain_type(given)
            before, path = self._found.get(name, (None, file.path))
            together = kind if before is None else widened(before, kind)
            if together is None:
                raise InvalidInput(
                    f"keep: column {shown(name)} is {kind} in {shown(file.path)} but {before} in {shown(path)}, and no type "
                    "holds the values of both; convert one of them, or leave the column out of keep"
                )
            if together != before:
                _check_writable(name, together, file)
                self._found[name] = (together, file.path)

    def types(self) -> dict[str, pa.DataType]:
        return {name: settled(kind) for name, (kind, _) in self._found.items()}


def part_schema(
    request: BatchRequest, signature: Signature, waiting: Callable[[], AbstractContextManager[None]]
) -> pa.Schema:
    """What is known of the parts' columns before any row is run. `waiting` limits how long some files may take to read."""
    if request.format == OPENAI:
        return pa.schema([])
    if not request.keep:
        known = [(name, pa.string() if name == FILE else pa.int64()) for name in kept_columns(request)]
    else:
        types = _typed(request, waiting) if request.format in _TYPED else _untyped(request)
        known = [(name, types.get(name, pa.string())) for name in request.keep]
    schema = pa.schema([*known, *map(output_column, signature.outputs or ())])
    if request.output_format == CSV:
        check_csv(schema)
    return schema


def kept_columns(request: BatchRequest) -> Sequence[str]:
    """The columns of a part before the outputs: those that are kept, or each row's place."""
    several = [FILE] if len(request.files) > 1 else []
    return request.keep or [*several, get_source(request.format).locator]


def dump_schema(schema: pa.Schema) -> bytes:
    return bytes(schema.serialize())


def load_schema(data: bytes) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(data))


def _typed(request: BatchRequest, waiting: Callable[[], AbstractContextManager[None]]) -> dict[str, pa.DataType]:
    kept, source = KeptTypes(request.keep), get_source(request.format)
    with ThreadPoolExecutor(16, thread_name_prefix="schema") as pool:
        for start in range(0, len(request.files), _AT_ONCE):
            files = request.files[start : start + _AT_ONCE]
            with waiting():
                samples = list(pool.map(source.sample, files))
            for file, sample in zip(files, samples, strict=True):
                kept.add(file, sample)
    return kept.types()


def _untyped(request: BatchRequest) -> dict[str, pa.DataType]:
    fixed = dict.fromkeys(MEDIA.values(), pa.binary()) | {PATH: pa.string()}
    return {name: KEPT[kind] for name, kind in request.keep_types.items()} or fixed


def _check_writable(name: str, kind: pa.DataType, file: InputFile) -> None:
    try:
        pq.write_table(pa.table({name: pa.nulls(0, kind)}), io.BytesIO())
    except pa.ArrowException as error:
        raise InvalidInput(
            f"keep: column {shown(name)} of {shown(file.path)} is {kind}, which Parquet cannot hold; leave it out of keep"
        ) from error
