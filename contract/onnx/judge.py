"""Reads an ONNX file: its inputs and outputs, and whether onnxruntime may open it.

The file may keep tensors in data files beside it. Those it names must be plain files of its own folder: onnxruntime would read
whatever else a path names. The producer judges before an upload, the worker before a load.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from forebay.contract.errors import InvalidInput, MissingExtra, ModelRefused

Described = dict[str, dict[str, Any]]

CLASSES_KEY = "classes"  # of a file's metadata: names, in the order of the probabilities
GAPS_KEY = "nan"  # of a file's metadata: "false" where NaN among the numbers would give wrong outputs
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # whose operators onnxruntime brings
_READS_FILES = ("EPContext",)  # operators that open a path of their own
_LOCATION_KEYS = {"location", "offset", "length", "checksum"}
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "str", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
_FORMS = {
    "sequence_type": "a sequence", "map_type": "a map", "optional_type": "optional", "sparse_tensor_type": "sparse",
}  # fmt: skip
FREE_BATCH = (
    "export it with a free one: dynamic_shapes={name: {0: 'batch'}} in torch.onnx.export, or "
    "initial_types=[(name, FloatTensorType([None, n]))] in skl2onnx"
)


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A file that may be opened: where it lies, itself as onnx.ModelProto, the data files that it names, and one sample's inputs
    and outputs in the JSON form of a signature; outputs are None where the file does not tell all shapes.
    """  # fmt: skip

    path: Path
    proto: Any
    data: tuple[str, ...]
    inputs: Described
    outputs: Described | None


def read_onnx(path: Path) -> OnnxFile:
    """A file, or the only .onnx file of a folder.

    ModelRefused for what onnxruntime must not open, InvalidInput for a broken file and for inputs and outputs that are not
    batches of tensors; both say what to do.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingExtra("reading an ONNX file needs onnx", "onnx") from error
    file = _only_file(path)
    try:
        model = onnx.load_model(file, load_external_data=False)
    except DecodeError as error:
        raise InvalidInput(
            f"{file.name} is not an ONNX file, or damaged; write it with torch.onnx.export or onnx.save, and keep "
            "what is larger than 2 GB in data files beside it"
        ) from error
    # what this reader does not know, it cannot judge, and another version of the reader may know it
    model.DiscardUnknownFields()
    tensors = _judged(model, file.name)
    data = {_data_file(tensor, file): None for tensor in tensors if tensor.data_location == tensor.EXTERNAL}
    weights = {tensor.name for tensor in model.graph.initializer}  # which old files list among the inputs
    weights |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if not inputs or not model.graph.output:
        raise InvalidInput(
            f"{file.name}: the graph takes or gives nothing; export a model that maps tensors to tensors"
        )
    described = {value.name: _input(value, file.name) for value in inputs}
    outputs = _outputs(model.graph.output, file.name)
    told = {entry.key: entry.value for entry in model.metadata_props}
    if told.get(GAPS_KEY) == "false":
        described = {name: field | {"nan": False} for name, field in described.items()}
    if outputs is not None:
        _name_classes(outputs, told.get(CLASSES_KEY))
    return OnnxFile(file, model, tuple(data), described, outputs)


def _name_classes(outputs: Described, told: str | None) -> None:
    """The names of classes, where the file has some for its `probabilities`, as export.estimators writes them."""
    try:
        classes = json.loads(told or "null")
    except ValueError:
        return
    field = outputs.get("probabilities", {})
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if named and field.get("shape") == [len(classes)] and len({*classes}) == len(classes):
        field["classes"] = classes


def _only_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.onnx"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:10]) or "none"
        raise InvalidInput(f"the folder {path.name} must hold one .onnx file, and holds {names}; give the file itself")
    return files[0]


def _messages(model: Any) -> Iterator[Any]:
    """The model and every message in it, those of subgraphs and functions included."""
    from google.protobuf.message import Message

    left = [model]
    while left:
        message = left.pop()
        yield message
        if type(message).__name__ == "TensorProto":
            continue  # its bytes may be many, and nothing else is in it
        for field, value in message.ListFields():
            if field.message_type is not None:
                left.extend([value] if isinstance(value, Message) else value)


def _judged(model: Any, name: str) -> list[Any]:
    """Every tensor of the model; ModelRefused for an operator that onnxruntime does not bring, or that opens files."""
    own = {(function.domain, function.name) for function in model.functions}
    tensors = []
    for message in _messages(model):
        kind = type(message).__name__
        if kind == "TensorProto":
            tensors.append(message)
        if kind == "NodeProto" and message.op_type in _READS_FILES:
            raise ModelRefused(f"{name}: operator {message.op_type} opens another file; export the model itself")
        if kind == "NodeProto" and message.domain not in DOMAINS and (message.domain, message.op_type) not in own:
            raise ModelRefused(
                f"{name}: operator {message.op_type!r:.80} of domain {message.domain!r:.80} is a custom one, which needs "
                f"a library that is not loaded here; export with operators of {', '.join(filter(None, DOMAINS))}"
            )
    return tensors


def _data_file(tensor: Any, file: Path) -> str:
    """The data file that a tensor lies in, relative to the model's folder; ModelRefused for a path that leads elsewhere."""
    where = f"{file.name}: tensor {tensor.name!r:.80}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data) or not {"location"} <= entries.keys() <= _LOCATION_KEYS:
        raise ModelRefused(
            f"{where} names its data by {[e.key for e in tensor.external_data]!r:.200}; save it with onnx.save"
        )
    location = entries["location"]
    place = PurePosixPath(location)
    # onnxruntime takes a location with * for an address in memory
    odd = (
        place.is_absolute() or ".." in place.parts or "\\" in location or "*" in location or not location.isprintable()
    )
    target = file.parent / place
    if odd or not place.parts or target.resolve() != file.parent.resolve().joinpath(*place.parts):
        raise ModelRefused(
            f"{where} lies in {location!r:.200}, which is no plain file of the model's folder; put it beside the .onnx file"
        )
    if not target.is_file():
        raise InvalidInput(
            f"{where} lies in {location!r:.200}, which is not there; register the folder that has both files"
        )
    numbers = [entries.get(key, "0") for key in ("offset", "length")]
    if not all(re.fullmatch(r"[0-9]{1,18}", number) for number in numbers):
        raise ModelRefused(f"{where} has the offset and length {numbers!r:.100}, which are not whole numbers")
    end = int(numbers[0]) + max(int(numbers[1]), _bytes(tensor))
    if end > target.stat().st_size:
        raise InvalidInput(
            f"{where} ends at byte {end} of {location!r:.200}, which has {target.stat().st_size}; it is cut off"
        )
    return place.as_posix()


def _bytes(tensor: Any) -> int:
    from onnx import TensorProto, helper

    try:
        size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        raise ModelRefused(f"tensor {tensor.name!r:.80} has the unknown data type {tensor.data_type}") from None
    narrow = TensorProto.DataType.Name(tensor.data_type).endswith(("INT4", "4E2M1", "INT2"))  # several to a byte
    return 0 if narrow else math.prod(tensor.dims) * size


def _input(value: Any, file: str) -> dict[str, Any]:
    field = _field("input", value, file)
    if field is None:
        raise InvalidInput(f"{file}: input {value.name!r} does not tell its shape; export it with one")
    return field


def _outputs(values: Any, file: str) -> Described | None:
    fields = {value.name: _field("output", value, file) for value in values}
    known = {name: field for name, field in fields.items() if field is not None}
    return known if len(known) == len(fields) else None


def _field(side: str, value: Any, file: str) -> dict[str, Any] | None:
    """One sample's dtype and shape; None when the file does not tell the shape."""
    where = f"{file}: {side} {value.name!r}"
    form = value.type.WhichOneof("value")
    if form != "tensor_type":
        hint = "; convert with options={'zipmap': False} in skl2onnx" if form == "sequence_type" else ""
        raise InvalidInput(f"{where} is {_FORMS.get(form, 'of no known type')}, not a tensor{hint}")
    tensor = value.type.tensor_type
    dtype = _DTYPES.get(tensor.elem_type)
    if dtype is None:
        raise InvalidInput(
            f"{where} has a dtype that a row cannot have (number {tensor.elem_type} of onnx.TensorProto); cast it to "
            "float32 inside the graph"
        )
    if not tensor.HasField("shape"):
        return None
    shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    if not shape or shape[0] != -1:
        given = f"has a fixed first dimension of {shape[0]}" if shape else "has no dimension"
        raise InvalidInput(f"{where} {given}, and so no free batch dimension; {FREE_BATCH}")
    if dtype != "str":
        return {"dtype": dtype, "shape": shape[1:]}
    if any(length != 1 for length in shape[1:]):
        raise InvalidInput(f"{where} has texts of shape {shape[1:]} for a row; one text is taken: of shape [] or [1]")
    return {"dtype": "str"}
