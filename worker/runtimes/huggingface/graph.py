"""A folder's model as an ONNX graph, between the library's own tokenizer or processor and what makes rows of its output."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from forebay.contract.model import ModelVersion
from forebay.contract.onnx.judge import read_onnx
from forebay.worker.runtimes.onnx_session import open_session
from forebay.worker.runtimes.tensors import module_bytes


class GraphModel(nn.Module):
    """Stands for a model of the library's: takes tensors on the CPU by name, and gives the graph's only output under its name."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, root: Path, config: Any, device: str, spec: ModelVersion) -> None:
        super().__init__()
        facts = read_onnx(root)
        self.config, self.nbytes = config, facts.proto.ByteSize()
        self._session = open_session(facts, device, spec)
        [self._output] = (value.name for value in self._session.outputs)

    def forward(self, **inputs: Tensor) -> Any:
        feed = {value.name: inputs[value.name].numpy() for value in self._session.inputs}
        [made] = self._session.run(None, feed)
        return SimpleNamespace(**{self._output: torch.from_numpy(made)})


def graph_model(root: Path, config: Any, device: str, spec: ModelVersion) -> GraphModel:
    """Named as the model that the graph was made of: the library's pipelines know models by their names."""
    named = (getattr(config, "architectures", None) or [GraphModel.__name__])[0]
    made: GraphModel = type(str(named), (GraphModel,), {})(root, config, device, spec)
    return made


def model_bytes(model: nn.Module) -> int:
    return model.nbytes if isinstance(model, GraphModel) else module_bytes(model)
