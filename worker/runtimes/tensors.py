"""Rows to batched tensors, and a batch's outputs back to rows, for the runtimes that feed torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forebay.contract.errors import ForebayError, InvalidInput
from forebay.contract.signature import Field, Row

ONLY_INPUT = "input"  # what the only input is called when nothing declares a name
_STACKABLE = "biufc"  # kinds of dtypes: bool, integers, floats, complex
_CHEAP_COPY = 64 * 1024  # bytes; a row up to this size is copied out, so that it does not keep its whole batch alive
_NOT_IN_NUMPY = {torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz}


@dataclass(frozen=True, slots=True)
class Differentiable:
    """Rows as the tensors `(batch, ...)` by which a network's outputs have gradients.

    `forward(*inputs, *fixed)` gives its outputs by name, of any number of rows. `groups` says of each number of a row of the
    only input which feature it is part of. `told` makes the rows' values of arrays of the inputs' shapes, such as gradients
    (`slopes`), or parts of a sum. `recurrent` networks have no gradients in cuDNN.
    """

    inputs: tuple[Tensor, ...]
    forward: Callable[..., dict[str, Tensor]]
    told: Callable[[Sequence[NDArray[Any]], bool], list[Row]]
    fixed: tuple[Tensor, ...] = ()
    groups: tuple[int, ...] | None = None
    recurrent: bool = False


def by_input(names: Sequence[str], arrays: Sequence[NDArray[Any]]) -> list[Row]:
    """Of arrays `(batch, ...)`, one for each input, the rows."""
    return [dict(zip(names, row, strict=True)) for row in zip(*arrays, strict=True)]


def floating(tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Whole numbers as float64, which holds those up to 2^53 exactly; InvalidInput for larger ones."""
    for name, tensor in tensors.items():
        if tensor.element_size() == 8 and not tensor.is_floating_point() and (tensor.double().abs() > 2**53).any():
            raise InvalidInput(f"input {name!r} holds a whole number beyond 2^53, which explain cannot carry exactly")
    return tuple(t if t.is_floating_point() else t.double() for t in tensors.values())


def stack(rows: Sequence[Row], fields: Sequence[Field] | None, device: str = "cpu") -> dict[str, Tensor]:
    """One tensor `(batch, *shape)` per input; without `fields` names and dtypes are those of the first row."""
    dtypes = _dtypes(rows[0], fields)
    return {
        name: _column(name, [_value(row, name, len(dtypes)) for row in rows], dtype, device)
        for name, dtype in dtypes.items()
    }


def split(output: Any, count: int, names: Sequence[str] | None = None) -> list[Row]:
    """`count` rows of a batch's output: a tensor, a tuple or list of tensors, or a dict of them.

    `names` are the declared outputs. ForebayError names the shape when an output does not have one row per row.
    """
    arrays = {name: _array(name, tensor, count) for name, tensor in named_outputs(output, names).items()}
    if len(arrays) == 1:
        (array,) = arrays.values()
        return [_unshared(row) for row in array]
    return [{name: _unshared(array[i]) for name, array in arrays.items()} for i in range(count)]


class WholeColumns:
    """Columns `(batch, *shape)` as tensors; names and dtypes as in `stack`. They are copies, for a model may write to what it is
    given, as networks do that begin with an operation in place. On the CPU a graph, which does the same for any values, gets none
    once it was seen not to write.
    """  # fmt: skip

    def __init__(self, fields: Sequence[Field] | None, device: str = "cpu", *, graph: bool) -> None:
        self._fields, self._device, self._graph, self._copies = fields, device, graph, True

    def run(self, columns: Mapping[str, NDArray[Any]], forward: Callable[[dict[str, Tensor]], Any]) -> Any:
        """What `forward` gives, without gradients."""
        names = [field.name for field in self._fields] if self._fields is not None else list(columns)
        missing = [name for name in names if name not in columns]
        if missing:
            raise InvalidInput(f"input {missing[0]!r} is missing; given are {', '.join(map(repr, columns))}")
        arrays = {name: np.ascontiguousarray(columns[name]) for name in names}
        tensors = {name: torch.tensor(a) if self._copies else torch.from_numpy(a) for name, a in arrays.items()}
        with torch.inference_mode():
            made = forward({name: tensor.to(self._device) for name, tensor in tensors.items()})
        self._copies = not self._graph or any(tensor._version for tensor in tensors.values())
        return made


def columns(output: Any, count: int, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """A batch's output as arrays `(count, *shape)` by name: what `split` takes apart."""
    return {name: _array(name, tensor, count) for name, tensor in named_outputs(output, names).items()}


def tensor_bytes(*groups: Mapping[str, Any]) -> int:
    """Bytes of the storages behind the tensors in `groups` (state dicts, constants), each shared one counted once."""
    tensors = [tensor for group in groups for tensor in group.values() if isinstance(tensor, Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def module_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return tensor_bytes(dict(module.named_parameters()), dict(module.named_buffers()))


def _dtypes(row: Row, fields: Sequence[Field] | None) -> dict[str, str | None]:
    if fields is not None:
        return {field.name: field.dtype for field in fields}
    return dict.fromkeys(row) if isinstance(row, Mapping) else {ONLY_INPUT: None}


def _value(row: Row, name: str, count: int) -> Any:
    if not isinstance(row, Mapping):
        if count == 1:
            return row
        raise InvalidInput(
            f"the model has {count} inputs; give a dict with one value for each, got {type(row).__name__}"
        )
    if name not in row:
        raise InvalidInput(f"input {name!r} is missing; given are {', '.join(map(repr, row))}")
    return row[name]


def _column(name: str, values: list[Any], dtype: str | None, device: str) -> Tensor:
    if dtype in ("str", "bytes", "json"):
        raise InvalidInput(
            f"input {name!r} is {dtype}, which makes no tensor; make arrays of it in the model's preprocess"
        )
    try:
        arrays = [np.asarray(value, dtype) for value in values]
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"input {name!r} cannot become an array: {error}") from error
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1 or arrays[0].dtype.kind not in _STACKABLE:
        raise InvalidInput(f"input {name!r} cannot be stacked: dtype {arrays[0].dtype}, shapes {sorted(shapes)}")
    return _batched(arrays, device)


def _batched(arrays: list[NDArray[Any]], device: str) -> Tensor:
    if not device.startswith("cuda"):
        return torch.from_numpy(np.stack(arrays)).to(device)  # (batch, *shape)
    # Stacked straight into pinned memory: one copy here, and the one to the device overlaps with what runs there.
    like = torch.from_numpy(np.empty(0, arrays[0].dtype))
    pinned = torch.empty((len(arrays), *arrays[0].shape), dtype=like.dtype, pin_memory=True)
    np.stack(arrays, out=pinned.numpy())
    return pinned.to(device, non_blocking=True)


def named_outputs(output: Any, names: Sequence[str] | None) -> dict[str, Any]:
    """A module's outputs by name, in the order of the declared `names`."""
    if isinstance(output, Mapping):
        return _picked(output, names)
    tensors = list(output) if isinstance(output, tuple | list) else [output]
    labels = list(names or ("output",) if len(tensors) == 1 else names or [f"output_{i}" for i in range(len(tensors))])
    if len(labels) != len(tensors):
        raise ForebayError(f"the model gave {len(tensors)} outputs; its signature declares {', '.join(labels)}")
    return dict(zip(labels, tensors, strict=True))


def _picked(output: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    missing = [name for name in names or () if name not in output]
    if missing:
        raise ForebayError(f"the model gave no {', '.join(missing)}; it gave {', '.join(map(str, output))}")
    return {str(name): output[name] for name in names or output}


def _array(name: str, tensor: Any, count: int) -> NDArray[Any]:
    if not isinstance(tensor, Tensor):
        raise ForebayError(f"output {name!r} is a {type(tensor).__name__}, not a tensor")
    if tensor.ndim == 0 or tensor.shape[0] != count:
        raise ForebayError(
            f"output {name!r} has shape {tuple(tensor.shape)} for {count} rows; its first dimension must be {count}"
        )
    tensor = tensor.detach()
    array: NDArray[Any] = (tensor.float() if tensor.dtype in _NOT_IN_NUMPY else tensor).cpu().numpy()
    return array


def _silence_readonly_warning() -> None:
    """torch warns, once in a process, about the first read-only array, as Arrow's are; we write to none of them."""
    readonly = np.zeros(1)
    readonly.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(readonly)


_silence_readonly_warning()


def _unshared(row: Any) -> Any:
    """A row that does not hold on to its batch, where that is cheap."""
    return row.copy() if isinstance(row, np.ndarray) and row.nbytes <= _CHEAP_COPY else row
