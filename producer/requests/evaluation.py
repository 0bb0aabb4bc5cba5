"""The request of an evaluation: which rows, which columns go into the model, which of its outputs is compared with the target.

All that can be refused without running the model is refused here, before anything is stored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from forebay.contract.errors import InvalidInput
from forebay.contract.model import GENERATES_TEXT, ModelVersion
from forebay.contract.references import shown
from forebay.contract.requests.batch import ARROW, MEDIA, OPENAI, InputFile
from forebay.contract.requests.evaluation import EvaluateRequest
from forebay.contract.requests.training import DataSummary
from forebay.contract.signature import ARRAY_DTYPES
from forebay.datasets.examples import example_columns
from forebay.datasets.formats.source import Sample
from forebay.datasets.planning.checking import Named, check_file, check_rows, name_columns
from forebay.datasets.reading.table import FOLDER
from forebay.producer.requests.files import DataSet, check_examples, find_dataset, first_with_rows

DATASET_LENGTH = 2000  # of what is kept of a data set's name


def make_request(
    model: ModelVersion,
    dataset: DataSet,
    *,
    target: Any,
    columns: Named = None,
    output: str | None = None,
    format: str | None = None,
    learnt_from: DataSummary | None = None,
) -> EvaluateRequest:
    """The request, checked against the files and the model's signature. `learnt_from` is what the version was
    trained on, as far as that is known.
    """  # fmt: skip
    files, format = find_dataset(dataset, format, "evaluate on one at a time")
    if format == OPENAI:
        raise InvalidInput(
            "a file in OpenAI's form has no column to compare results with; give JSON lines with a target"
        )
    file, sample = first_with_rows(files, format)
    types = {name: kind for name, kind in sample.types.items() if name != target}
    there = [FOLDER] if format in MEDIA else list(sample.types)
    if not isinstance(target, str) or target not in there:
        raise InvalidInput(f"target: there is no column {shown(target)}; there are {', '.join(map(shown, there))}")
    if model.runtime in GENERATES_TEXT:
        return _of_texts(model, files, format, target, sample, dataset)
    named = name_columns(
        default_columns(columns, model, types, learnt_from.features if learnt_from else ()),
        model.signature,
        types,
        format,
    )
    request = EvaluateRequest(
        tuple(files), format, target, named, _output(model, output), sample.row_bytes, dataset_name(dataset)
    )  # fmt: skip
    check_file(request.reading, model.signature, file)
    check_rows(request.reading, model.signature, file)
    if format not in (*MEDIA, ARROW):
        check_file(request.reading, model.signature, files[-1])
    return request


def _of_texts(
    model: ModelVersion, files: Sequence[InputFile], format: str, target: str, sample: Sample, dataset: DataSet
) -> EvaluateRequest:
    """Of a language model: examples as `finetune-text` learns them; what is to be generated is the target."""
    *before, last = example_columns(sample.types)
    if target != last:
        raise InvalidInput(f"target: {model.ref} generates text, so it is {shown(last)}, got {shown(target)}")
    check_examples(files, format)
    name = (model.signature.inputs or ())[0].name
    columns = {name: tuple(before) or (last,)}
    return EvaluateRequest(tuple(files), format, target, columns, None, sample.row_bytes, dataset_name(dataset))


def default_columns(given: Named, model: ModelVersion, types: Mapping[str, Any], features: Sequence[str]) -> Named:
    """Without columns named: those of the training, or for a single vector all but the target."""
    inputs = model.signature.inputs or ()
    if given is not None or len(inputs) > 1 or (inputs and inputs[0].name in types):
        return given
    if features and set(features) <= set(types):
        return list(features)
    vector = bool(inputs) and inputs[0].dtype in ARRAY_DTYPES and inputs[0].shape == (len(types),)
    return list(types) if vector and len(types) > 1 else None


def _output(model: ModelVersion, output: str | None) -> str | None:
    names = [field.name for field in model.signature.outputs or ()]
    if output is not None:
        if names and output not in names:
            raise InvalidInput(f"output: {model.ref} gives {', '.join(map(shown, names))}, not {shown(output)}")
        return output
    if len(names) > 1 and not {"label", "probabilities"} & set(names):
        raise InvalidInput(
            f"output: which one is compared with the target? {model.ref} gives {', '.join(map(shown, names))}"
        )
    return None


def dataset_name(dataset: DataSet) -> str:
    several = [dataset] if isinstance(dataset, str | os.PathLike) else list(dataset)
    return ", ".join(str(one) for one in several)[:DATASET_LENGTH]
