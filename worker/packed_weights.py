"""Weights of safetensors files in fewer bits: as bytes with a scale for each output channel, or in bfloat16. The file's metadata
say which are; who reads them gets them in the dtype that they had.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

PACKED = "forebay.packed"  # in the metadata: JSON, by name the dtype that a packed tensor had
SCALE = ".forebay_scale"
INT8, BFLOAT16 = "int8-weights", "bfloat16"
LEAST_VALUES = 256  # of a tensor that is packed: fewer save nothing
_FLOATS = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}


def read_weights(file: Path) -> dict[str, Tensor]:
    """A file's tensors by name; SafetensorError when it is damaged."""
    with safe_open(file, framework="pt") as opened:
        had = _packed(opened.metadata())
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    for name, dtype in had.items():
        if name not in tensors or dtype not in _FLOATS:
            raise SafetensorError(f"{PACKED} names {name!r} of dtype {dtype!r}, which is not there")
        scale = tensors.pop(name + SCALE, None)
        tensors[name] = (
            tensors[name].to(_FLOATS[dtype]) if scale is None else from_int8(tensors[name], scale, _FLOATS[dtype])
        )
    return tensors


def write_packed(file: Path, tensors: Mapping[str, Tensor], method: str, metadata: Mapping[str, str]) -> None:
    """Write those tensors that gain by it packed by `method`, int8-weights or bfloat16, and all others as they are; all of them
    for another method.
    """  # fmt: skip
    made: dict[str, Tensor] = {}
    had: dict[str, str] = {}
    for name, tensor in tensors.items():
        if method not in (INT8, BFLOAT16) or not gains(tensor) or (method == BFLOAT16 and tensor.element_size() <= 2):
            made[name] = tensor.contiguous()
            continue
        had[name] = str(tensor.dtype).removeprefix("torch.")
        if method == BFLOAT16:
            made[name] = tensor.to(torch.bfloat16).contiguous()
        else:
            made[name], made[name + SCALE] = to_int8(tensor)
    save_file(made, file, {**metadata, PACKED: json.dumps(had)} if had else dict(metadata))


def gains(tensor: Tensor) -> bool:
    """Whether a tensor is a matrix of weights, and worth packing."""
    return (
        tensor.is_floating_point()
        and tensor.ndim > 1
        and tensor.numel() >= LEAST_VALUES
        and bool(tensor.isfinite().all())
    )


def to_int8(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `(channels, …)` as bytes, and the scale of each channel, `(channels, 1, …)` in float32."""
    flat = weights.float().flatten(1)
    scale = flat.abs().amax(1, keepdim=True) / 127
    scale[scale == 0] = 1.0
    whole = (flat / scale).round().clamp(-127, 127).to(torch.int8)
    return whole.reshape(weights.shape).contiguous(), scale.reshape(-1, *[1] * (weights.ndim - 1)).contiguous()


def from_int8(whole: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (whole.float() * scale).to(dtype)


@contextmanager
def unpacked(folder: Path) -> Iterator[Path]:
    """A folder for a library that knows nothing of packed weights: this one, or another with links to its files, and its packed
    weights as they were.
    """  # fmt: skip
    packed = {file for file in folder.rglob("*.safetensors") if _metadata(file)}
    if not packed:
        yield folder
        return
    beside = (
        folder.parent if os.access(folder.parent, os.W_OK) else None
    )  # /tmp may be memory, and too small for a model
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=beside) as made:
        for file in folder.rglob("*"):
            target = Path(made, file.relative_to(folder))
            if file.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if file in packed:
                save_file(read_weights(file), target, {"format": "pt"})
            else:
                target.symlink_to(file.resolve())
        yield Path(made)


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return _packed(opened.metadata())
    except (OSError, SafetensorError):  # the library says it better
        return {}


def _packed(metadata: Mapping[str, str] | None) -> dict[str, str]:
    try:
        found = json.loads((metadata or {}).get(PACKED, "{}"))
    except ValueError as error:
        raise SafetensorError(f"{PACKED} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise SafetensorError(f"{PACKED} is not a mapping from names to dtypes")
    return found
