"""A folder of Hugging Face's transformers with an ONNX graph in the place of its weights. All else in it stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.runtimes.folders import GRAPH, WEIGHTS
from forebay.contract.signature import Row
from forebay.worker.kinds.convert import export
from forebay.worker.kinds.convert.graphs import folder_graph
from forebay.worker.runtimes.huggingface.media import MediaModel
from forebay.worker.runtimes.huggingface.runtime import Transformers
from forebay.worker.runtimes.huggingface.texts import TextModel

_TOKENIZER = "tokenizer_config.json"
_INDEX = ".safetensors.index.json"

Sample = tuple[dict[str, Tensor], export.Free]  # what the graph is exported with


def write_folder(spec: ModelVersion, path: Path | None, texts: Sequence[str], row: Row, folder: Path) -> None:
    """Writes the graph and the files beside it. It is exported with `texts`, or with media like `row`."""
    loaded = Transformers().load(path, "cpu", replace(spec, dtype=None, compile=False))
    assert path is not None  # noqa: S101 - else it could not be loaded
    sample, free = _of_texts(loaded, texts) if isinstance(loaded, TextModel) else _of_media(loaded, row, len(texts))
    output = loaded.head.output
    program = export.exported(folder_graph(loaded.module, list(sample), output), sample, free)
    export.write_onnx(export.onnx_of(program, list(sample), [output]), folder / f"model{GRAPH}")
    for file in path.iterdir():
        if file.is_file() and not file.name.endswith((WEIGHTS, GRAPH, _INDEX)):
            shutil.copy(file, folder)
    if isinstance(loaded, TextModel):  # who only has the graph cannot ask the model how much it reads
        told = folder / _TOKENIZER
        options = json.loads(told.read_text("utf-8")) if told.exists() else {}
        told.write_text(json.dumps(options | {"model_max_length": loaded.longest}), "utf-8")


def _of_texts(loaded: TextModel, texts: Sequence[str]) -> Sample:
    tokens = loaded.prepare([{"text": text} for text in texts]).inputs
    return tokens, {name: [0] for name in tokens}


def _of_media(loaded: MediaModel, row: Row, count: int) -> Sample:
    """So many of the row as its processor gives it. Free are those dimensions that are others for rows of other sizes."""
    own = loaded.sample_row()
    sizes = [_processed(loaded, one) for one in (row, own, _twice(own))]
    first, *others = [made for made in sizes if made is not None]
    free = {
        name: [i for i, length in enumerate(value.shape) if any(one[name].shape[i] != length for one in others)]
        for name, value in first.items()
    }
    return loaded.prepare([first] * count), free


def _processed(loaded: MediaModel, row: Row) -> Mapping[str, Any] | None:
    try:
        made: Mapping[str, Any] = loaded.preprocess(row)
    except InvalidInput:  # longer than it takes
        return None
    return made


def _twice(row: Row) -> Row:
    """Media of twice the length, or of twice the width and height."""
    return {name: np.tile(value, (2, 2, 1)[-value.ndim :] if value.ndim > 1 else 2) for name, value in row.items()}
