"""Runs a module built by the operator's own code, with weights from safetensors: plain tensors, nothing to unpickle.

`options`: `factory` = "package.module:callable" on the operator's list, `kwargs` for it. Knows allowed.py, tensors.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from forebay.contract.errors import ForebayError, ModelLoadFailed
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Field, Row
from forebay.worker.allowed import import_allowed
from forebay.worker.packed_weights import read_weights
from forebay.worker.runtimes.speed import Forward, tuned
from forebay.worker.runtimes.tensors import (
    Differentiable,
    WholeColumns,
    by_input,
    floating,
    module_bytes,
    named_outputs,
    split,
    stack,
)
from forebay.worker.runtimes.tensors import columns as as_columns


class Safetensors:
    """Builds the module with its factory and loads the weights strictly."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed = tuple(allowed)

    def load(self, path: Path | None, device: str, spec: ModelVersion) -> ModuleModel:
        """The module in eval mode on `device`; ModelLoadFailed names keys that are missing or unexpected."""
        outputs = spec.signature.outputs
        names = None if outputs is None else [field.name for field in outputs]
        module = self.module(path, spec).to(device)
        return ModuleModel(module, tuned(module, spec, device), device, spec.signature.inputs, names)

    def module(self, path: Path | None, spec: ModelVersion) -> nn.Module:
        """The module in eval mode, with its weights."""
        factory = import_allowed(spec.options.get("factory", ""), self._allowed)
        if path is None:
            raise ModelLoadFailed(
                f"{spec.ref} has no artifact; register it with a .safetensors file or a folder of them"
            )
        module = _build(factory, spec)
        _fill(module, _weights(path, spec), spec)
        return module.eval()


class ModuleModel:
    """A module fed one batched tensor, or several by name."""

    def __init__(
        self,
        module: nn.Module,
        forward: Forward,
        device: str,
        inputs: Sequence[Field] | None,
        outputs: Sequence[str] | None,
    ) -> None:
        self._module = module
        self._forward = forward
        self._device = device
        self._inputs = inputs
        self._outputs = outputs
        self._whole = WholeColumns(inputs, device, graph=False)

    def predict(self, rows: Sequence[Row]) -> list[Row]:
        return self.run(self.prepare(rows))

    def prepare(self, rows: Sequence[Row]) -> tuple[dict[str, Tensor], int]:
        """The rows as tensors on the device, and how many they are."""
        return stack(rows, self._inputs, self._device), len(rows)

    @torch.inference_mode()
    def run(self, prepared: tuple[dict[str, Tensor], int]) -> list[Row]:
        tensors, count = prepared
        return split(self._called(tensors), count, self._outputs)

    def predict_columns(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One forward pass over whole columns `(batch, *shape)`."""
        output = self._whole.run(columns, self._called)
        return as_columns(output, len(next(iter(columns.values()))), self._outputs)

    def differentiable(self, rows: Sequence[Row]) -> Differentiable:
        """These rows as tensors by which the outputs have gradients."""
        tensors = stack(rows, self._inputs, self._device)
        names, dtypes = list(tensors), [tensor.dtype for tensor in tensors.values()]

        def forward(*inputs: Tensor) -> dict[str, Tensor]:
            # A copy, for the module may write to what it is given.
            given = (t.to(dtype, copy=True) for t, dtype in zip(inputs, dtypes, strict=True))
            return named_outputs(self._called(dict(zip(names, given, strict=True))), self._outputs)

        recurrent = any(isinstance(part, nn.RNNBase) for part in self._module.modules())
        return Differentiable(
            floating(tensors), forward, lambda arrays, _: by_input(names, arrays), recurrent=recurrent
        )

    def _called(self, tensors: Mapping[str, Tensor]) -> Any:
        return self._forward(*tensors.values()) if len(tensors) == 1 else self._forward(**tensors)

    def nbytes(self) -> int:
        return module_bytes(self._module)


def _build(factory: Any, spec: ModelVersion) -> nn.Module:
    name, kwargs = spec.options["factory"], spec.options.get("kwargs", {})
    try:
        module = factory(**kwargs)
    except ForebayError:
        raise
    except Exception as error:  # the factory is the operator's code
        raise ModelLoadFailed(
            f"{spec.ref}: {name}(**{kwargs!r:.200}) raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelLoadFailed(f"{spec.ref}: {name} gave a {type(module).__name__}; it must give a torch.nn.Module")
    return module


def _weights(path: Path, spec: ModelVersion) -> dict[str, Tensor]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise ModelLoadFailed(f"{spec.ref}: the artifact's folder holds no .safetensors file")
    try:
        return {name: tensor for file in files for name, tensor in read_weights(file).items()}
    except (SafetensorError, OSError) as error:
        raise ModelLoadFailed(f"{spec.ref}: the artifact is no safetensors file: {error}") from error


def _fill(module: nn.Module, weights: dict[str, Tensor], spec: ModelVersion) -> None:
    _add_tied(module, weights)
    own = module.state_dict().keys()
    missing, unexpected = sorted(own - weights.keys()), sorted(weights.keys() - own)
    if missing or unexpected:
        parts = [
            f"{what} {', '.join(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys
        ]
        raise ModelLoadFailed(f"{spec.ref}: the weights do not fit the module: {'; '.join(parts)}")
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ModelLoadFailed(f"{spec.ref}: {error}") from error


def _add_tied(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """safetensors.torch.save_model writes tensors that share memory once: the other names are filled in here."""
    by_memory: dict[tuple[int, torch.Size], str] = {}
    state = {name: tensor for name, tensor in module.state_dict().items() if tensor.numel()}
    for name, tensor in state.items():
        if name in weights:
            by_memory[tensor.data_ptr(), tensor.shape] = name
    for name, tensor in state.items():
        twin = by_memory.get((tensor.data_ptr(), tensor.shape))
        if name not in weights and twin is not None:
            weights[name] = weights[twin]
