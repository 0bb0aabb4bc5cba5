"""A version's artifact in another form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.onnx.judge import read_onnx
from forebay.contract.pt2.archive import read_pt2_signature
from forebay.contract.runtimes.folders import TRANSFORMERS
from forebay.contract.signature import Row, Signature
from forebay.worker.kinds.convert import export
from forebay.worker.kinds.convert.folders import write_folder
from forebay.worker.kinds.convert.graphs import Graph, graph_of, text_graph
from forebay.worker.runtimes.onnx_text import TOKENIZER, write_tokenizer
from forebay.worker.runtimes.sentence_transformers import SentenceTransformers
from forebay.worker.runtimes.tensors import stack
from forebay.worker.runtimes.torch_export import declared_inputs, load_program
from forebay.worker.trainer.labels import LABEL

EXPORTED_ROWS = 3  # that a graph is exported with: 1 would be taken for fixed
TEXTS = ("What is converted reads a few texts", "of which some", "are longer than others are, and some are shorter")


class Source(NamedTuple):
    """What is converted: a version, where its artifact lies, and the operator's list of import paths."""

    spec: ModelVersion
    path: Path | None
    allowed: Sequence[str]


def write_pt2(source: Source, row: Row, folder: Path) -> Path:
    """The .pt2 file; `row` has the shapes that it is exported with."""
    graph = graph_of(*source)
    if not graph.plain and len(row) > 1:
        raise InvalidInput(
            f"inputs of a .pt2 are parameters of Python, which cannot be called {', '.join(row)}; convert it to onnx"
        )
    path = folder / "model.pt2"
    export.write_pt2(export.exported(graph, _sample(source.spec, row), _free(source.spec)), path)
    return path


def write_onnx(source: Source, row: Row, folder: Path) -> Path:
    """The .onnx file, or a folder with it and a tokenizer or processor."""
    spec = source.spec
    path = folder / "model.onnx"
    if spec.runtime == TRANSFORMERS:
        write_folder(spec, source.path, TEXTS, row, folder)
        return folder
    if spec.runtime == "sentence-transformers":
        _write_text(source, path)
        return folder
    if spec.runtime == "torch-export":
        program, facts = load_program(source.path, "cpu", spec)
        names = [field.name for field in declared_inputs(facts, spec)]
        model = export.onnx_of(program, names, [tensor.name for tensor in facts.outputs])
    else:
        model = _of_module(graph_of(*source), spec, row, path)
    if any(field.name == LABEL for field in spec.signature.outputs or ()) and spec.runtime == "recipe":
        export.add_labels(model, spec.classes)
    export.write_onnx(model, path)
    return path


def signature_of(path: Path, parent: Signature, to: str) -> Signature:
    """The parent's inputs and those of its outputs that the new form has; InvalidInput when it takes others."""
    if path.is_dir():
        return parent
    if to == "onnx":
        facts = read_onnx(path)
        inputs, outputs = facts.inputs, facts.outputs
    else:
        inputs, outputs = (described or {} for described in read_pt2_signature(path))
    taken = {field.name: _plain(field.json()) for field in parent.inputs or ()}
    if len(taken) == len(inputs) == 1:
        inputs = dict(zip(taken, inputs.values(), strict=True))
    if inputs != taken:
        raise InvalidInput(
            f"what comes out takes {inputs}, but the version takes {taken}: its code fixes what its signature leaves free"
        )
    made = Signature.parse(None, outputs or None)
    if parent.outputs is None or made.outputs is None:
        return Signature(parent.inputs, made.outputs)
    names = {field.name for field in made.outputs}
    kept = tuple(field for field in parent.outputs if field.name in names or len(parent.outputs) == len(names) == 1)
    return Signature(parent.inputs, kept or made.outputs)


def _plain(field: Mapping[str, Any]) -> dict[str, Any]:
    return {name: field[name] for name in ("dtype", "shape") if name in field}


def _of_module(graph: Graph, spec: ModelVersion, row: Row, path: Path) -> Any:
    sample, free = _sample(spec, row), _free(spec)
    if export.recurrent(graph):
        return export.onnx_of_recurrent(graph, sample, free, path)
    with torch.no_grad():
        outputs = list(graph(*sample.values()))
    return export.onnx_of(export.exported(graph, sample, free), list(sample), outputs)


def _write_text(source: Source, path: Path) -> None:
    encoder = SentenceTransformers(source.allowed).encoder(source.path, "cpu", source.spec)
    if getattr(encoder.tokenizer, "backend_tokenizer", None) is None:
        raise InvalidInput(f"{source.spec.ref} has a tokenizer in Python, which no tokenizer.json holds")
    tokens = {name: value for name, value in encoder.preprocess(list(TEXTS)).items() if isinstance(value, Tensor)}
    outputs = source.spec.signature.outputs
    graph = text_graph(encoder, list(tokens), outputs[0].name if outputs else "embedding")
    program = export.exported(graph, tokens, {name: [0] for name in tokens})
    model = export.onnx_of(program, list(tokens), [outputs[0].name if outputs else "embedding"])
    export.write_onnx(model, path)
    write_tokenizer(encoder.tokenizer, encoder.max_seq_length, path.with_name(TOKENIZER))


def _sample(spec: ModelVersion, row: Row) -> dict[str, Tensor]:
    return stack([row] * EXPORTED_ROWS, spec.signature.inputs)


def _free(spec: ModelVersion) -> export.Free:
    fields = spec.signature.inputs or ()
    return {field.name: [i for i, length in enumerate(field.shape) if length == -1] for field in fields}
