"""A compressed copy of a version's artifact, by its runtime and the method."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from forebay.contract.model import ModelVersion
from forebay.contract.requests.versions.compress import INT8_DYNAMIC, INT8_WEIGHTS, PRUNE
from forebay.worker.packed_weights import gains, read_weights, write_packed


def compressed(spec: ModelVersion, source: Path, folder: Path, method: str, share: float) -> Path:
    """The file or folder that was made of the artifact at `source`, in `folder`."""
    if spec.runtime == "onnx":
        return _onnx(source, folder / "model.onnx", method, share)
    if spec.runtime == "torch-export":
        return _program(spec, source, folder / "model.pt2", method, share)
    if source.is_file():
        return _weights(source, folder / "model.safetensors", method, share)
    made = folder / "model"
    shutil.copytree(source, made)
    for file in made.rglob("*.safetensors"):
        _weights(file, file, method, share)
    return made


def prune(weights: Tensor, share: float) -> Tensor:
    """The weights with that share of them, the smallest, at zero."""
    sizes = weights.abs().float().flatten()
    count = int(share * sizes.numel())
    if not count:
        return weights
    return torch.where(weights.abs().float() <= sizes.kthvalue(count).values, torch.zeros_like(weights), weights)


def _weights(source: Path, target: Path, method: str, share: float) -> Path:
    tensors = read_weights(source)
    if method == PRUNE:
        tensors = {name: prune(value, share) if gains(value) else value for name, value in tensors.items()}
    with safe_open(source, framework="pt") as opened:
        kept = {name: text for name, text in (opened.metadata() or {}).items() if name == "format"}
    write_packed(target, tensors, method, kept)
    return target


def _program(spec: ModelVersion, source: Path, target: Path, method: str, share: float) -> Path:
    from forebay.worker.kinds.compress.program import pack_program, rewrite_program
    from forebay.worker.runtimes.torch_export import load_program

    program = load_program(source, "cpu", spec)[0]
    if method == PRUNE:
        rewrite_program(program, lambda weights: prune(weights, share))
    else:
        pack_program(program, method)
    torch.export.save(program, target)
    return target


def _onnx(source: Path, target: Path, method: str, share: float) -> Path:
    from forebay.contract.onnx.judge import read_onnx
    from forebay.worker.kinds.compress import onnx_file

    facts = read_onnx(source)
    file, made = facts.path, target
    graph = {file.name, *facts.data}
    beside = [path for path in source.iterdir() if path.name not in graph] if source.is_dir() else []
    if beside:  # a tokenizer, or what prepares a recipe's rows
        made = target.with_suffix("")
        made.mkdir()
        target = made / file.name
        for path in beside:
            shutil.copy(path, made)
    if method == INT8_WEIGHTS:
        onnx_file.pack_onnx(file, target)
    elif method == INT8_DYNAMIC:
        onnx_file.quantize_onnx(file, target)
    else:
        onnx_file.rewrite_onnx(file, target, lambda weights: prune(torch.from_numpy(weights.copy()), share).numpy())
    return made
