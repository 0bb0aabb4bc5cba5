"""A low-rank adapter (LoRA) on a language model: put into it, learned, written down in peft's own form, and served.

An adapter is served in a copy of its base that has the base's tensors, not copies of them: adapters of one base cost their own
weights only, and the base computes what it would alone. Nothing is unpickled.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forebay.contract.errors import InvalidInput, ModelLoadFailed
from forebay.contract.references import shown
from forebay.worker.trainer.texts.losses import check_packing, packed_losses, token_losses

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
# Of a LoraConfig: what may differ from peft's defaults, and what says nothing of how the adapter computes.
_KNOWN = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
)
_TOLD = (
    "task_type",
    "peft_type",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "init_lora_weights",
)
_PREFIX = "base_model.model."  # of peft's names


class AdaptedModel(nn.Module):
    """A frozen language model and the adapter that is learned on it, whose parameters are all that it has as a module.

    So optimizer, checkpoints and DDP see the adapter alone.
    """

    def __init__(self, model: nn.Module, config: LoraConfig, *, packing: bool = False) -> None:
        """InvalidInput where the model has no such layers, or with `packing` cannot keep examples in one sequence apart."""
        super().__init__()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        if packing:
            check_packing(model, model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            raise InvalidInput(f"targets: {error}") from error
        self._hidden = (model,)  # a tuple: nn.Module would take it for its own
        self._config = config
        self._losses = packed_losses if packing else token_losses
        own = adapter_parameters(model)
        for parameter in own.values():  # also on a base in bfloat16, where small steps would be lost
            parameter.data = parameter.data.float()
        self._names = {name.replace(".", "/"): name for name in own}
        self.adapter = nn.ParameterDict({key: own[name] for key, name in self._names.items()})

    def forward(self, ids: Tensor, learned: Tensor) -> Tensor:
        """The mean loss of the learned tokens of each row `(rows,)`."""
        return self._losses(self._hidden[0], ids, learned)

    def train(self, mode: bool = True) -> AdaptedModel:
        self._hidden[0].train(mode)
        return super().train(mode)

    def write(self, folder: Path) -> None:
        """The adapter as peft writes one."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {_on_disk(self._names[key]): value.detach().cpu().contiguous() for key, value in self.adapter.items()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        told = self._config.to_dict() | {"inference_mode": True, "base_model_name_or_path": None}
        plain = {name: sorted(value) if isinstance(value, set) else value for name, value in told.items()}
        (folder / CONFIG_FILE).write_text(json.dumps(plain, indent=2, sort_keys=True), encoding="utf-8")

    def _apply(self, fn: Any, recurse: bool = True) -> AdaptedModel:
        self._hidden[0]._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def adapter_config(params: Mapping[str, Any]) -> LoraConfig:
    """What the parameters of `finetune-text` ask for."""
    return LoraConfig(
        r=params["rank"], lora_alpha=params["alpha"], lora_dropout=params["dropout"], task_type="CAUSAL_LM",
        target_modules=list(params["targets"]) or "all-linear",
    )  # fmt: skip


def adapted(model: nn.Module, folder: Path) -> nn.Module:
    """A copy of `model` with the tensors of `model` itself, and the folder's adapter in it, in eval mode.

    ModelLoadFailed for a folder that is not an adapter of this model, or one that computes in a way that is not known here.
    """
    config, weights = _read(folder)
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    made = copy.deepcopy(model, shared)
    device = next(iter(shared.values())).device
    try:
        inject_adapter_in_model(config, made)
    except ValueError as error:
        raise ModelLoadFailed(f"the adapter does not fit its base: {error}") from error
    own = adapter_parameters(made)
    _check_names(own, weights)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.data = weights[_on_disk(name)].to(device)
    return made.requires_grad_(False).eval()


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters in a model, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def _on_disk(name: str) -> str:
    return _PREFIX + name.replace(".default.", ".")


def _read(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    try:
        told = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(told, dict) or told.get("peft_type") != "LORA":
            raise ModelLoadFailed(f"{CONFIG_FILE} is not that of a LoRA adapter")
        plain = {field.name: field for field in fields(LoraConfig)}
        default = LoraConfig().to_dict()
        for name, value in told.items():
            if name not in (*_KNOWN, *_TOLD) and (name not in plain or value != default[name]):
                raise ModelLoadFailed(f"{CONFIG_FILE}: {shown(name)} is {shown(value)}, which is not served here")
        return LoraConfig(**{name: told[name] for name in _KNOWN if name in told}), load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        what = f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, as a training job makes it"
        raise ModelLoadFailed(f"the artifact is not {what}: {type(error).__name__}: {error}") from error


def _check_names(own: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    expected = {_on_disk(name): tuple(parameter.shape) for name, parameter in own.items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        odd = next(iter(expected.items() ^ found.items()))[0]
        raise ModelLoadFailed(
            f"the adapter does not fit its base: {shown(odd)} is {found.get(odd, 'not there')}, expected "
            f"{expected.get(odd, 'none of that name')}"
        )
