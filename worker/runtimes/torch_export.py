"""Runs programs that `torch.export.save` wrote (.pt2): the one form that brings its own graph and needs no Python code.

torch never opens the file that was uploaded: contract.pt2 judges it, and a fresh archive is written of only what was judged. So
it does not matter what zipfile and torch's own reader might see differently.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from forebay.contract.errors import ModelLoadFailed, ModelRefused
from forebay.contract.model import ModelVersion
from forebay.contract.pt2.archive import (
    CONSTANTS_CONFIG,
    FORMAT,
    PROGRAM,
    SAMPLE_INPUTS,
    VERSION,
    WEIGHTS_CONFIG,
    Pt2,
    Pt2Tensor,
    read_pt2,
)  # fmt: skip
from forebay.contract.signature import Field, Row
from forebay.worker.runtimes.speed import tuned
from forebay.worker.runtimes.tensors import (
    ONLY_INPUT,
    Differentiable,
    WholeColumns,
    by_input,
    floating,
    named_outputs,
    split,
    stack,
    tensor_bytes,
)
from forebay.worker.runtimes.tensors import columns as as_columns

_BLOCK = 16 * 2**20
SHAPES_KEPT = 1024
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_forcing = threading.Lock()


class TorchExport:
    """Loads a .pt2 file after looking into it; nothing in it is unpickled or evaluated."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        del allowed  # an exported program runs no Python code

    def load(self, path: Path | None, device: str, spec: ModelVersion) -> ExportedModel:
        """The program on `device`, whatever device it was exported on."""
        return ExportedModel(*load_program(path, device, spec), device, spec)


class ExportedModel:
    """An exported program that takes any number of rows, within and beyond the batch sizes it was exported for."""

    sample_made_up = True  # zeros, which a program may refuse though it serves real rows

    def __init__(self, program: ExportedProgram, facts: Pt2, device: str, spec: ModelVersion) -> None:
        self._facts = facts
        self._device = device
        self._fields = declared_inputs(facts, spec)
        self._whole = WholeColumns(self._fields, device, graph=True)
        self._bytes = tensor_bytes(program.state_dict, program.constants)
        self._in_spec = program.call_spec.in_spec
        self._dtypes = _input_dtypes(program)
        module = program.module()
        self._nodes = list(program.graph.nodes)
        self._module = tuned(module, spec, device)
        self._unchecked = self._module if spec.compile else tuned(module.forward, spec, device)
        self._checked: set[tuple[torch.Size, ...]] = set()

    def predict(self, rows: Sequence[Row]) -> list[Row]:
        """Forward passes of at most the largest batch the program takes."""
        return self.run(self.prepare(rows))

    def prepare(self, rows: Sequence[Row]) -> list[tuple[list[torch.Tensor], int]]:
        """The rows as tensors on the device, in parts of at most that size, each with its number of rows."""
        step = self._facts.most or len(rows) or 1
        return [self._stacked(rows[start : start + step]) for start in range(0, len(rows), step)]

    def run(self, prepared: list[tuple[list[torch.Tensor], int]]) -> list[Row]:
        return [row for flat, count in prepared for row in self._forward(flat, count)]

    def predict_columns(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Forward passes over whole columns `(batch, *shape)`, each of at most the largest batch the program takes."""
        count = len(next(iter(columns.values())))
        step = self._facts.most or count or 1
        parts = [self._columns(columns, start, min(start + step, count)) for start in range(0, count, step)]
        return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def differentiable(self, rows: Sequence[Row]) -> Differentiable:
        """These rows as tensors by which the outputs have gradients."""
        tensors = stack(rows, self._fields, self._device)
        recurrent = any(str(node.target).split(".")[1:2] in (["gru"], ["lstm"], ["rnn_tanh"]) for node in self._nodes)
        names = list(tensors)
        return Differentiable(
            floating(tensors), self._outputs, lambda arrays, _: by_input(names, arrays), recurrent=recurrent
        )

    def _outputs(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """The outputs of any number of rows by name, with gradients, of parts of as many rows as the program takes."""
        step, parts = self._facts.most or len(inputs[0]), list[list[torch.Tensor]]()
        for start in range(0, len(inputs[0]), step):
            # A copy, for the program may write to what it is given.
            part = [t[start : start + step].to(dtype, copy=True) for t, dtype in zip(inputs, self._dtypes, strict=True)]
            count = len(part[0])
            if count < self._facts.least:
                part = [torch.cat([t, t[:1].expand(self._facts.least - count, *t.shape[1:])]) for t in part]
            parts.append([leaf[:count] for leaf in self._leaves(part)])
        leaves = [torch.cat(made) for made in zip(*parts, strict=True)]
        return named_outputs(leaves, [output.name for output in self._facts.outputs])

    def nbytes(self) -> int:
        """Bytes of weights, buffers and constants."""
        return self._bytes

    def sample_row(self) -> dict[str, Any]:
        """Zeros of the shapes the program was exported with, under the names that rows use."""
        pairs = zip(self._fields, self._facts.inputs, strict=True)
        return {field.name: np.zeros(tensor.example, tensor.dtype) for field, tensor in pairs}

    def _stacked(self, rows: Sequence[Row]) -> tuple[list[torch.Tensor], int]:
        # torch.export may have taken "at least 2" for granted, so a smaller batch is filled up and the rest cut off.
        padded = [*rows, *[rows[0]] * (self._facts.least - len(rows))]
        return self._flat(stack(padded, self._fields, self._device)), len(rows)

    def _flat(self, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        return [tensor.to(dtype) for tensor, dtype in zip(tensors.values(), self._dtypes, strict=True)]

    def _columns(self, columns: Mapping[str, NDArray[Any]], start: int, stop: int) -> dict[str, NDArray[Any]]:
        count, least = stop - start, self._facts.least
        part = {name: values[start:stop] for name, values in columns.items()}
        if count < least:
            part = {name: np.concatenate([v, np.repeat(v[:1], least - count, axis=0)]) for name, v in part.items()}
        leaves = self._whole.run(part, lambda tensors: self._leaves(self._flat(tensors)))
        output = as_columns(leaves, max(count, least), [field.name for field in self._facts.outputs])
        return output if count >= least else {name: values[:count] for name, values in output.items()}

    @torch.inference_mode()
    def _forward(self, flat: list[torch.Tensor], count: int) -> list[Row]:
        return split(
            self._leaves(flat), max(count, self._facts.least), [output.name for output in self._facts.outputs]
        )[:count]

    def _leaves(self, flat: list[torch.Tensor]) -> list[torch.Tensor]:
        """The program's outputs. It checks only shapes of what it is given here, and takes longer for that than a small network:
        each is checked once.
        """  # fmt: skip
        args, kwargs = pytree.tree_unflatten(flat, self._in_spec)
        shapes = tuple([tensor.shape for tensor in flat])
        if shapes in self._checked:
            made = self._unchecked(*args, **kwargs)
        else:
            made = self._module(*args, **kwargs)
            self._checked = {shapes} if len(self._checked) >= SHAPES_KEPT else self._checked | {shapes}
        return [leaf for leaf in pytree.tree_leaves(made) if leaf is not None]


def load_program(path: Path | None, device: str, spec: ModelVersion) -> tuple[ExportedProgram, Pt2]:
    """The program of a version, and what its archive tells of it."""
    if path is None:
        raise ModelLoadFailed(f"{spec.ref} has no artifact; register it with a .pt2 file")
    facts = read_pt2(path, device)
    program = _load(path, facts, spec)
    _refuse_foreign_targets(program, spec)
    return program, facts


def _load(path: Path, facts: Pt2, spec: ModelVersion) -> ExportedProgram:
    beside = path.parent if os.access(path.parent, os.W_OK) else None  # /tmp may be memory, and too small for a model
    with tempfile.TemporaryDirectory(prefix=".pt2-", dir=beside) as folder, _weights_only():
        copy = Path(folder) / "model.pt2"
        try:
            _write_safe_copy(path, facts, copy)
        except OSError:
            raise  # the disk's, not the file's
        except Exception as error:  # whatever zipfile and what it decompresses with raise for a damaged archive
            raise ModelLoadFailed(f"{spec.ref}: the .pt2 is damaged: {error}; register it again") from error
        try:
            return torch.export.load(copy)
        except Exception as error:  # torch.export raises whatever its layers raise
            raise ModelLoadFailed(f"{spec.ref}: torch {torch.__version__} cannot load this .pt2: {error}") from error


def _write_safe_copy(path: Path, facts: Pt2, copy: Path) -> None:
    """Writes to `copy` an archive with the judged program and the raw tensors it names. Sample inputs, a pickle, are left out."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as target:
        texts = {
            FORMAT: "pt2",
            VERSION: "0",
            "byteorder": "little",
            ".data/version": "6\n",
            PROGRAM: json.dumps(facts.program),
            WEIGHTS_CONFIG: json.dumps(facts.configs[WEIGHTS_CONFIG]),
            CONSTANTS_CONFIG: json.dumps(facts.configs[CONSTANTS_CONFIG]),
            SAMPLE_INPUTS: "",
        }
        for name, text in texts.items():
            target.writestr(f"model/{name}", text)
        for name in facts.payloads:
            with source.open(facts.root + name) as raw, target.open(f"model/{name}", "w", force_zip64=True) as out:
                shutil.copyfileobj(raw, out, _BLOCK)


@contextmanager
def _weights_only() -> Iterator[None]:
    """A second guard: should torch meet a pickle in spite of the check, it must not run it."""
    with _forcing:
        before = os.environ.get(_FORCE)
        os.environ[_FORCE] = "1"
        try:
            yield
        finally:
            os.environ.pop(_FORCE)
            if before is not None:
                os.environ[_FORCE] = before


def _refuse_foreign_targets(program: ExportedProgram, spec: ModelVersion) -> None:
    """The graph's JSON was checked by name; this checks what torch made of the names, in every subgraph."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            if node.op == "call_function" and not _is_operator(node.target):
                raise ModelRefused(f"{spec.ref}: the graph calls {node.target!r:.120}, which is not a tensor operator")


def _is_operator(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload | torch._ops.HigherOrderOperator):
        return True
    return getattr(target, "__module__", "") in ("_operator", "math") or getattr(target, "__name__", "").startswith(
        "sym_"
    )


def _input_dtypes(program: ExportedProgram) -> list[torch.dtype]:
    metas = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    return [metas[name].dtype for name in program.graph_signature.user_inputs]


def declared_inputs(facts: Pt2, spec: ModelVersion) -> list[Field]:
    """The program's inputs in its own order, under the names that rows use."""
    names = [tensor.name for tensor in facts.inputs]
    declared = spec.signature.inputs
    given = names if declared is None else [field.name for field in declared]
    if len(names) == len(given) == 1:
        return [_field(given[0], facts.inputs[0])]
    if sorted(names) != sorted(given):
        raise ModelLoadFailed(
            f"{spec.ref}: the signature declares {', '.join(given)}; the program takes {', '.join(names)}"
        )
    return [_field(name, tensor) for name, tensor in zip(names, facts.inputs, strict=True)]


def _field(name: str, tensor: Pt2Tensor) -> Field:
    return Field(name or ONLY_INPUT, tensor.dtype, tensor.shape)
