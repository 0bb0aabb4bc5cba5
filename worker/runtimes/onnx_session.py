"""Graphs that were judged, opened with onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from numpy.typing import NDArray

from forebay.contract.errors import ModelLoadFailed
from forebay.contract.model import ModelVersion
from forebay.contract.onnx.judge import OnnxFile
from forebay.contract.settings import Settings

log = structlog.get_logger()

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_ERRORS_ONLY = 3
_NO_ROOM = ("Failed to allocate memory", "bad_alloc", "out of memory")


class Session:
    """A graph that onnxruntime runs. `inputs` and `outputs` have a name, type and shape each."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs, self.outputs = session.get_inputs(), session.get_outputs()
        self.threads = session.get_session_options().intra_op_num_threads

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, NDArray[Any]]) -> list[Any]:
        """The outputs of these names, or all; MemoryError when there was no room for them, else what onnxruntime raises."""
        try:
            made: list[Any] = self._session.run(outputs, feed)
        except Exception as error:
            if any(words in str(error) for words in _NO_ROOM):
                raise MemoryError(f"onnxruntime: {error}") from error
            raise
        return made


def open_session(facts: OnnxFile, device: str, spec: ModelVersion) -> Session:
    """The graph on `device`, or on the CPU where onnxruntime was built without CUDA."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = _threads(spec)
    options.inter_op_num_threads = 1
    for key, value in {
        "session.load_model_format": "ONNX",  # else a file of its own format, judged by nobody, could pose as one
        "session.model_external_initializers_file_folder_path": str(facts.path.parent),
        "session.intra_op.allow_spinning": "0",  # waiting threads would take the cores from other processes
    }.items():
        options.add_session_config_entry(key, value)
    providers = providers_for(device, ort.get_available_providers())
    try:
        session = ort.InferenceSession(facts.proto.SerializeToString(), options, providers=providers)
    except Exception as error:  # onnxruntime raises whatever its layers raise
        raise ModelLoadFailed(f"{spec.ref}: onnxruntime {ort.__version__} cannot load it: {error}") from error
    if device.startswith("cuda") and CUDA not in session.get_providers():
        log.warning("onnx_without_cuda", model=spec.ref, note="it runs on the CPU: install onnxruntime-gpu")
    return Session(session)


def providers_for(device: str, available: Sequence[str]) -> list[Any]:
    """What onnxruntime computes with: CUDA where the device and its build have it, and the CPU. Nothing else it may have."""
    if device.startswith("cuda") and CUDA in available:
        return [(CUDA, {"device_id": int(device.partition(":")[2] or 0)}), CPU]
    return [CPU]


def _threads(spec: ModelVersion) -> int:
    """This child's threads, or fewer where the version's options say so."""
    most = Settings.load().torch_threads or os.cpu_count() or 1
    return min(most, int(spec.options.get("threads", most)))
