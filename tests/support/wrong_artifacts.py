"""Files and folders that somebody may try to register, none of which is served as it is, and what must be said of each."""

import bz2
import gzip
import io
import json
import pickle
import tarfile
import warnings
import zipfile
import zlib
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn


def _saved(value: object, **given: object) -> bytes:
    torch.save(value, made := io.BytesIO(), **given)  # type: ignore[arg-type]
    return made.getvalue()


def _tensors() -> bytes:
    return save({"w": torch.zeros(2)})


def _scripted() -> bytes:
    with warnings.catch_warnings(action="ignore"):  # of its deprecation
        torch.jit.save(torch.jit.trace(nn.Linear(4, 2), torch.zeros(1, 4)), made := io.BytesIO())
    return made.getvalue()


def _zipped(*names: str) -> bytes:
    with zipfile.ZipFile(made := io.BytesIO(), "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    return made.getvalue()


def _tarred(mode: str) -> bytes:
    with tarfile.open(fileobj=(made := io.BytesIO()), mode=mode) as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("model/config.json"))
    return made.getvalue()


class _Estimator:
    """Pickled under the name of scikit-learn's class."""


def _estimator() -> bytes:
    _Estimator.__module__, _Estimator.__qualname__ = "sklearn.svm", "SVC"
    import sklearn.svm as home

    was, home.SVC = home.SVC, _Estimator
    try:
        return pickle.dumps(_Estimator())
    finally:
        home.SVC = was


_WEIGHTS = nn.Linear(4, 2).state_dict()
_CUT = _saved(nn.Linear(64, 64).state_dict())[:9000]
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"

# name -> content, and what must be said
FILES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "state.pth": (_saved(_WEIGHTS), ("a state dict", 'torch.load("state.pth", weights_only=True))', "register(")),
    "bare.bin": (_saved(OrderedDict(weight=torch.zeros(2))), ("a state dict", "weights_only=True")),
    "last.ckpt": (_saved({"state_dict": _WEIGHTS, "epoch": 3}), ("a checkpoint", 'weights_only=True)["state_dict"]')),
    "lightning.ckpt": (
        _saved({"state_dict": _WEIGHTS, "hyper_parameters": Namespace(width=3)}),
        ("a checkpoint of training with objects of 'argparse.Namespace'", 'weights_only=False)["state_dict"]', "that you trust"),
    ),
    "own.pt": (_saved({"model_state_dict": _WEIGHTS, "step": 1}), ("a checkpoint", '["model_state_dict"]')),
    "whole.pt": (_saved(nn.Linear(4, 2)), ("torch.nn.modules.linear.Linear", "weights_only=False", "only one that you trust")),
    "old.pth": (_saved(_WEIGHTS, _use_new_zipfile_serialization=False), ("a state dict", "load_state_dict")),
    "old_whole.pt": (_saved(nn.ReLU(), _use_new_zipfile_serialization=False), ("activation.ReLU", "register the module")),
    "tensor.pt": (_saved(torch.zeros(3)), ("without a module's weights", "register the module itself")),
    "adam.pt": (_saved(torch.optim.SGD([torch.zeros(1)]).state_dict()), ("without a module's weights",)),
    "script.pt": (_scripted(), ("a TorchScript archive", 'torch.jit.load("script.pt").state_dict()', "module.eval()")),
    "cut.pt": (_CUT, ("a damaged zip archive", "cut off")),
    "empty.pt2": (b"", ("an empty file", "write it again")),
    "noise.pt": (b"\x00\x01\x02 noise", ("not what its name says", "write it again")),
    "svc.pkl": (_estimator(), ("sklearn.svm.SVC", "joblib.load", "client.models.register")),
    "svc.joblib": (zlib.compress(_estimator()), ("sklearn.svm.SVC", "joblib.load")),
    "dict.pickle": (pickle.dumps({"a": 1}), ("a pickle", "runs code")),
    "net.keras": (_zipped("config.json", "metadata.json", "model.weights.h5"), ("a Keras model", 'export("net.onnx"')),
    "net.h5": (b"\x89HDF\r\n\x1a\n....", ("an HDF5 file", 'load_model("net.h5")')),
    "llama.gguf": (b"GGUF\x03\x00", ("a GGUF file", "llama-server -m llama.gguf", 'runtime="openai"')),
    "net.tflite": (b"\x1c\0\0\0TFL3", ("TensorFlow Lite", "tf2onnx.convert --tflite net.tflite --output net.onnx")),
    "cat.cbm": (b"CBM1....", ("a CatBoost model", 'format="onnx"')),
    "boost.json": (json.dumps({"learner": {}}).encode(), ("an XGBoost model", "convert_xgboost", "boost.json")),
    "boost.txt": (b"tree\nversion=v4\n", ("a LightGBM model", "convert_lightgbm")),
    "net.mar": (_zipped("MAR-INF/MANIFEST.json", "net.pt"), ("an archive of TorchServe", "unzip it")),
    "model.zip": (_zipped("model/config.json", "model/model.safetensors"), ("an archive", "unpack it", "model folder")),
    "model.tar": (_tarred("w"), ("an archive", "unpack it")),
    "model.tar.gz": (_tarred("w:gz"), ("an archive", "unpack it")),
    "net.onnx.bz2": (bz2.compress(b"..."), ("a compressed file", "unpack it")),
    "notes.gz": (gzip.compress(b"..."), ("a compressed file", "unpack it")),
    "model.safetensors": (_LFS, ("a pointer of Git LFS", "git lfs pull")),
    "short.safetensors": (_tensors()[:-3], ("a damaged safetensors file", "cut off")),
    "page.bin": (b"<!DOCTYPE html><html>", ("a web page", "get the file again")),
    "rows.npy": (b"\x93NUMPY\x01\x00", ("data, not a model", "forebay batch")),
    "rows.npz": (_zipped("a.npy"), ("data, not a model",)),
    "net.py": (b"import torch\n", ("Python code", "client.models.register")),
    "config.json": (b"{}", ("one file of a model folder", "register the folder")),
    "net.xml": (b'<?xml version="1.0"?><net name="n">', ("OpenVINO", "ONNX or PyTorch")),
    "graph.pb": (b"\x08\x01", ("a graph of TensorFlow", "tf2onnx")),
    "net.engine": (b"ftrt", ("an engine of TensorRT", "ONNX or PyTorch")),
    "flax_model.msgpack": (b"\x81", ("no runtime serves", "export it to ONNX")),
    "what.xyz": (b"???", ("of no known kind", ".safetensors", "runtime=")),
}  # fmt: skip

# name -> its files, and what must be said
FOLDERS: dict[str, tuple[dict[str, bytes], tuple[str, ...]]] = {
    "empty": ({}, ("is empty",)),
    "pickled_bert": (
        {"config.json": b'{"architectures": ["BertForSequenceClassification"]}', "pytorch_model.bin": b"PK"},
        ("weights are pickled", 'save_pretrained("pickled_bert", safe_serialization=True)'),
    ),
    "pickled_minilm": (
        {"modules.json": b"[]", "config.json": b"{}", "pytorch_model.bin": b"PK"}, ("weights are pickled",),
    ),
    "unfetched": (
        {"config.json": b'{"architectures": ["LlamaForCausalLM"]}', "model.safetensors": _LFS}, ("git lfs pull",),
    ),
    "saved_model": ({"saved_model.pb": b"\x08", "variables/variables.index": b""}, ("a SavedModel", "--saved-model saved_model")),
    "mlflow": ({"MLmodel": b"flavors:\n  pytorch:\n", "data/model.pth": b"PK"}, ("MLflow",)),
    "diffusion": ({"model_index.json": b"{}"}, ("diffusers", "runtime='python'")),
    "triton": ({"config.pbtxt": b"", "1/model.onnx": b""}, ("Triton", "register the model file")),
    "tf1": ({"checkpoint": b"", "model.ckpt.index": b""}, ("a checkpoint of TensorFlow", "SavedModel")),
    "models--org--bert": ({"snapshots/1/config.json": b"{}", "refs/main": b"1"}, ("cache", "snapshots")),
    "net.mlpackage": ({"Manifest.json": b"{}", "Data/x": b""}, ("Core ML", "ONNX")),
    "llama": ({"params.json": b"{}", "consolidated.00.pth": b"PK"}, ("Meta's", "safetensors")),
    "version_0": ({"hparams.yaml": b"", "checkpoints/last.ckpt": b"PK"}, ("Lightning", "checkpoint")),
    "exported": ({"net.pt2": _zipped("net/archive_format"), "notes.txt": b"-"}, ("register the model file itself", "net.pt2")),
    "weights": (
        {"a.safetensors": _tensors(), "b.safetensors": _tensors()}, ("folder of weights", "runtime='safetensors'", "factory"),
    ),
    "nameless": ({"config.json": b"{}"}, ("without an architecture", "save_pretrained")),
    "parent": ({"bert/config.json": b"{}", "README.md": b"-"}, ("not a model folder", "parent/bert")),
    "one": ({"weights.pth": _saved(_WEIGHTS)}, ("holds one file", "a state dict")),
    "sources": ({"a.py": b"", "b.md": b"", "c.md": b""}, ("a.py, b.md, c.md", "of no kind that is served")),
}  # fmt: skip


def write(folder: Path, name: str) -> Path:
    """The wrong file or folder of this name, in `folder`."""
    path = folder / name
    if name in FILES:
        path.write_bytes(FILES[name][0])
        return path
    path.mkdir()
    for inner, content in FOLDERS[name][0].items():
        (path / inner).parent.mkdir(parents=True, exist_ok=True)
        (path / inner).write_bytes(content)
    return path
