"""From an argument or a file to the inputs of jobs. Knows file formats; the client checks shapes and dtypes."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forebay.contract.errors import InvalidInput
from forebay.contract.generation import INPUTS
from forebay.contract.references import described, shown
from forebay.contract.signature import Signature
from forebay.datasets import decoding
from forebay.producer.cli.options import as_text, cannot, parse_json, read_bytes, read_text

STDIN = "-"
SUFFIXES = ".npy, .npz, .json, .jsonl, .ndjson, .txt, or that of an image or sound"


@dataclass(frozen=True, slots=True)
class JobInputs:
    """The inputs, one per job; `many` when a job per row was asked for, even of a single row."""

    values: list[Any]
    many: bool = False


def read_inputs(
    signature: Signature, text: str | None, file: Path | None, *, each: bool, batched: bool, what: str = "INPUT"
) -> JobInputs:
    """The inputs that INPUT or --file give to a model of this signature; InvalidInput says what cannot be read."""
    if (text is None) == (file is None):
        both = "" if text is None else ", not both"
        raise InvalidInput(f"give one INPUT ('-' reads stdin) or --file FILE{both}")
    if each and batched:
        raise InvalidInput("--each makes a job of every row, --batched one job of all; give one of them")
    dtype = "json" if batched else _input_type(signature)
    inputs = JobInputs([_from_argument(text or "", dtype, what)]) if file is None else _from_file(file, dtype)
    if dtype in ("str", "bytes") and (file is None or str(file) == STDIN):
        _refuse_by_name(signature, inputs.values, what if file is None else "stdin")
    for value in inputs.values:
        _open_files(signature, value)
    if not each or inputs.many:
        return inputs
    return JobInputs(_rows(inputs.values[0]), many=True)


def _refuse_by_name(signature: Signature, values: Sequence[str | bytes], what: str) -> None:
    """InvalidInput for a text, or bytes, that looks like an input by name: as it stands it would give another result."""
    (field,) = signature.inputs or ()
    for text in values:
        if text[:1] not in ("{", b"{"):
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and [*value] == [field.name]:
            raise InvalidInput(
                f"{what} is taken as it stands, and looks like JSON with the input {field.name!r}: give its value alone, or "
                "the JSON by --file in a .json or .jsonl file"
            )


def _open_files(signature: Signature, value: Any) -> None:
    """Puts files, `{"file": "cat.jpg"}`, in the place of their names, in inputs by name that take some."""
    for field in signature.inputs or ():
        named = value.get(field.name) if isinstance(value, dict) else None
        if isinstance(named, dict) and [*named] == ["file"] and (field.media or field.dtype == "bytes"):
            value[field.name] = read_bytes(Path(str(named["file"])))


def _input_type(signature: Signature) -> str:
    """`str` or `bytes` for a model with one such input, which then needs no JSON around it, `prompt` for one that generates text;
    else `json`.
    """  # fmt: skip
    fields = signature.inputs
    if signature.inputs_json() == INPUTS:
        return "prompt"
    return fields[0].dtype if fields and len(fields) == 1 and fields[0].dtype in ("str", "bytes") else "json"


def _from_argument(text: str, dtype: str, what: str) -> Any:
    data = sys.stdin.buffer.read() if text == STDIN else text.encode("utf-8", "surrogateescape")
    if dtype == "bytes":
        return data
    where = "stdin" if text == STDIN else what
    decoded = as_text(data, where)
    if dtype == "prompt":
        return _prompt(decoded.removesuffix("\n"), where)
    return decoded.removesuffix("\n") if dtype == "str" else parse_json(decoded, where)


def _prompt(text: str, where: str) -> Any:
    """A prompt, or in JSON messages or the body of a request."""
    return parse_json(text, where) if text.lstrip()[:1] in ("{", "[") else text


def _from_file(file: Path, dtype: str) -> JobInputs:
    if dtype == "bytes":
        return JobInputs([read_bytes(file)])
    if str(file) == STDIN:
        text = as_text(sys.stdin.buffer.read(), "stdin")
        if dtype == "prompt":
            return JobInputs([_prompt(line, "stdin") for line in _lines(text)], many=True)
        return JobInputs(_lines(text) if dtype == "str" else _json_lines(text, "stdin"), many=True)
    suffix = file.suffix.lower()
    if any(suffix in endings for endings in decoding.SUFFIXES.values()):
        return JobInputs([read_bytes(file)])
    if suffix in (".npy", ".npz"):
        return JobInputs([_load_numpy(file)])
    if suffix == ".json":
        return JobInputs([parse_json(read_text(file), str(file))])
    if suffix in (".jsonl", ".ndjson"):
        return JobInputs(_json_lines(read_text(file), str(file)), many=True)
    if suffix != ".txt":
        raise InvalidInput(f"{shown(str(file))} is a file of an unknown type: its name must end in {SUFFIXES}")
    if dtype not in ("str", "prompt"):
        raise InvalidInput("a .txt file is for models that take one str; give .npy, .npz, .json or .jsonl")
    return JobInputs(_lines(read_text(file)), many=True)


def _load_numpy(file: Path) -> Any:
    try:
        with file.expanduser().open("rb") as opened:  # np.load given a name leaves a broken archive open
            loaded = np.load(opened, allow_pickle=False)
            archive = isinstance(loaded, np.lib.npyio.NpzFile)
            return {name: loaded[name] for name in loaded.files} if archive else loaded
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise cannot("read", file, error) from error


def _lines(text: str) -> list[str]:
    """The lines, empty ones too, so that the results stand beside them; not splitlines, which also cuts at U+2028."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _json_lines(text: str, where: str) -> list[Any]:
    numbered = enumerate(_lines(text), start=1)
    return [parse_json(line, f"{where}, line {number},") for number, line in numbered if line.strip()]


def _rows(value: Any) -> list[Any]:
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim):
        return list(value)
    if not isinstance(value, Mapping) or not value:
        what = "an array with a leading dimension, a list, or a dict of those"
        raise InvalidInput(f"--each needs {what}, got {described(value)}")
    columns = {name: _rows(column) for name, column in value.items()}
    if len({len(column) for column in columns.values()}) > 1:
        counts = ", ".join(f"{shown(name)} has {len(column)}" for name, column in columns.items())
        raise InvalidInput(f"--each needs as many rows in every input; here {counts}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
