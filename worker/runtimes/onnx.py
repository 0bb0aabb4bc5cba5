"""Runs ONNX files with onnxruntime: a graph of standard operators, which brings no Python code.

onnxruntime never opens the file that was uploaded: contract.onnx judges it, and what was judged is written anew for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import ForebayError, ModelLoadFailed
from forebay.contract.model import ModelVersion
from forebay.contract.onnx.judge import read_onnx
from forebay.contract.runtimes.folders import CONFIG, TRANSFORMERS
from forebay.contract.signature import ARRAY_DTYPES, Field, Row
from forebay.worker.runtimes import Model, get_runtime
from forebay.worker.runtimes.onnx_session import Session, open_session
from forebay.worker.runtimes.onnx_text import TOKENIZER, OnnxText

AROUND = {"recipe.json": "recipe", CONFIG: TRANSFORMERS}
"""By the name of a file beside a graph the runtime that runs it: what is before and after the graph is that one's."""
_CHEAP_COPY = 64 * 1024  # bytes; a row up to this size is copied out, so that it does not keep its whole batch alive


class Onnx:
    """Loads an .onnx file, or a folder that holds one: with its data files, with the recipe that prepares its rows, as a
    training job makes it, or with the tokenizer or processor of a Hugging Face folder, as a conversion does.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed = allowed  # of recipes: a graph of onnxruntime's own operators runs no Python code

    def load(self, path: Path | None, device: str, spec: ModelVersion) -> Model:
        """The model on `device`, or on the CPU where onnxruntime was built without CUDA."""
        if path is None:
            raise ModelLoadFailed(f"{spec.ref} has no artifact; register it with an .onnx file")
        for name, runtime in AROUND.items():
            if (path / name).is_file():
                return get_runtime(runtime, self._allowed).load(path, device, spec)
        facts = read_onnx(path)
        session, tokenizer = open_session(facts, device, spec), path / TOKENIZER
        return OnnxText(session, tokenizer, spec) if tokenizer.is_file() else OnnxModel(session, spec)


class OnnxModel:
    """A session fed whole columns `(batch, *shape)`."""

    def __init__(self, session: Session, spec: ModelVersion) -> None:
        self._session = session
        takes, gives = [value.name for value in session.inputs], [value.name for value in session.outputs]
        self._inputs = _fields(spec, takes)
        self._ranks = {value.name: len(value.shape) for value in session.inputs}
        self._outputs = _asked(spec, gives)

    def predict(self, rows: Sequence[Row]) -> list[Row]:
        return self.run(self.prepare(rows))

    def prepare(self, rows: Sequence[Row]) -> dict[str, NDArray[Any]]:
        """The rows as the session takes them: `(batch, *shape)` by the session's names."""
        return {name: self._stacked(name, field, rows) for name, field in self._inputs.items()}

    def run(self, prepared: dict[str, NDArray[Any]]) -> list[Row]:
        made = self._run(prepared)
        if len(made) == 1:
            return [_unshared(value) for value in next(iter(made.values()))]
        return [dict(zip(made, map(_unshared, row), strict=True)) for row in zip(*made.values(), strict=True)]

    def predict_columns(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One run over whole columns `(batch, *shape)`."""
        return self._run({name: np.ascontiguousarray(columns[field.name]) for name, field in self._inputs.items()})

    def _stacked(self, name: str, field: Field, rows: Sequence[Row]) -> NDArray[Any]:
        values = [row[field.name] for row in rows]
        if field.dtype == "str":
            return np.array(values, object).reshape(-1, *[1] * (self._ranks[name] - 1))
        return np.stack([np.asarray(value, ARRAY_DTYPES[field.dtype]) for value in values])

    def _run(self, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        count = len(next(iter(feed.values())))
        made = self._session.run([*self._outputs], feed)
        for name, array in zip(self._outputs, made, strict=True):
            if not isinstance(array, np.ndarray) or array.shape[:1] != (count,):
                form = getattr(array, "shape", type(array).__name__)
                raise ForebayError(f"output {name!r} is {form} for {count} rows; its first dimension must be {count}")
        return {
            name: array.reshape(count) if array.dtype == object else array
            for name, array in zip(self._outputs.values(), made, strict=True)
        }


def _fields(spec: ModelVersion, names: Sequence[str]) -> dict[str, Field]:
    """The declared inputs by the session's names for them: equal ones, but for an only input."""
    declared = spec.signature.inputs
    if declared is None:
        raise ModelLoadFailed(f"{spec.ref}: its signature declares no inputs; register the file again")
    if len(declared) == len(names) == 1:
        return {names[0]: declared[0]}
    given = {field.name: field for field in declared}
    if given.keys() != set(names):
        raise ModelLoadFailed(
            f"{spec.ref}: the signature declares {', '.join(given)}; the graph takes {', '.join(names)}"
        )
    return {name: given[name] for name in names}


def _asked(spec: ModelVersion, names: Sequence[str]) -> dict[str, str]:
    """The outputs to compute, and what rows call them: those that are declared, all where none is."""
    declared = [field.name for field in spec.signature.outputs or ()] or [*names]
    if len(declared) == len(names) == 1:
        return {names[0]: declared[0]}
    missing = [name for name in declared if name not in names]
    if missing:
        raise ModelLoadFailed(f"{spec.ref}: the graph gives no {', '.join(missing)}; it gives {', '.join(names)}")
    return {name: name for name in declared}


def _unshared(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) and value.nbytes <= _CHEAP_COPY else value
