"""The kinds of files and folders that are known, each with the lines that make a version of it.

In lines `{file}` stands for the file's name, and `{stem}` for its name without the ending.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forebay.contract.references import shown

REGISTER = 'client.models.register("net", module.eval(), example=sample)  # one sample, as predict takes it'
BUILD = "module = make_net()  # your code, which builds the network"
TRUSTED = "  # runs what is in the file: only one that you trust"
_ONNX = 'client.models.register("net", "net.onnx")'


@dataclass(frozen=True, slots=True)
class Recognized:
    """What a file or folder is, in words; the runtime that serves it, or what leads to one: a sentence, and lines to copy."""

    what: str
    runtime: str | None = None
    advice: str = ""
    lines: tuple[str, ...] = ()

    def told(self, path: Path) -> str:
        """The message for whoever gave it."""
        name = path.name.replace('"', "")
        lines = "".join(
            f"\n    {line.replace('{file}', name).replace('{stem}', Path(name).stem)}" for line in self.lines
        )
        return f"{shown(path.name)} is {self.what}{': ' if self.advice else '.'}{self.advice}{lines}"


def _convert(*lines: str) -> tuple[str, tuple[str, ...]]:
    """The way through ONNX: a command, or lines of Python, that write net.onnx."""
    command = lines[0].startswith("python ")
    return "convert it to ONNX with its own library, and register that", (
        *(f"{line} --output net.onnx" if command else line for line in lines), _ONNX,
    )  # fmt: skip


def _saved(load: str) -> tuple[str, tuple[str, ...]]:
    return "load it where you trust it, and register the object", (
        load + TRUSTED, 'client.models.register("net", model, example=sample)  # one sample, as predict takes it',
    )  # fmt: skip


OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
WEIGHT_KEYS = ("state_dict", "model_state_dict", "model_state", "model")
EXPORT_ADVICE = "register the module itself: client.models.register(name, module.eval(), example=sample)"
_KERAS = _convert("import keras", 'keras.models.load_model("{file}").export("net.onnx", format="onnx")')
_BOOSTED = "from onnxmltools import convert_{0}; from onnxmltools.convert.common.data_types import FloatTensorType"
_TYPES = 'initial_types=[("x", FloatTensorType([None, columns]))]'


def _boosted(library: str, load: str) -> tuple[str, tuple[str, ...]]:
    made = f'open("net.onnx", "wb").write(convert_{library}({load}, {_TYPES}).SerializeToString())'
    return _convert(_BOOSTED.format(library), made)


LIBRARIES = {
    "sklearn": _saved('model = joblib.load("{file}")'),
    "xgboost": _boosted("xgboost", 'joblib.load("{file}")'),
    "lightgbm": _boosted("lightgbm", 'joblib.load("{file}")'),
    "torch": _saved('model = joblib.load("{file}").eval()'),
    "keras": _convert('joblib.load("{file}").export("net.onnx", format="onnx")'),
}
ARCHIVE = Recognized("an archive", advice="unpack it, and register the file or the model folder that is in it")
DATA = Recognized("data, not a model", advice="it is an input of `forebay batch` or a data set of `forebay train`")
COMPRESSED = Recognized("a compressed file", advice="unpack it, and register what is in it")
TFLITE = Recognized("a TensorFlow Lite model", None, *_convert("python -m tf2onnx.convert --tflite {file}"))
TORCHSCRIPT = Recognized(
    "a TorchScript archive, whose code workers do not run",
    advice="take its weights into the Python module that it was made of, and register that",
    lines=(BUILD, 'module.load_state_dict(torch.jit.load("{file}").state_dict())', REGISTER),
)
MAGIC = {
    b"\x89HDF\r\n\x1a\n": Recognized("an HDF5 file, as Keras writes it", None, *_KERAS),
    b"GGUF": Recognized(
        "a GGUF file, which llama.cpp runs",
        advice="serve it there, and register its endpoint",
        lines=(
            "llama-server -m {file} --port 8080",
            'options = {"base_url": "http://127.0.0.1:8080/v1", "model": "{stem}"}',
            'client.models.register("net", runtime="openai", options=options)',
        ),
    ),
    b"CBM1": Recognized(
        "a CatBoost model", None,
        *_convert("import catboost", 'catboost.CatBoost().load_model("{file}").save_model("net.onnx", format="onnx")'),
    ),
    b"version https://git-lfs": Recognized(
        "a pointer of Git LFS, not the file itself", advice="run `git lfs pull` in its folder, and register it then"
    ),
    b"tree\nversion=": Recognized(
        "a LightGBM model", None, *_boosted("lightgbm", 'lightgbm.Booster(model_file="{file}")')
    ),
    **dict.fromkeys((b"BZh", b"\xfd7zXZ"), COMPRESSED),
    **dict.fromkeys((b"\x93NUMPY", b"PAR1", b"ARROW1", b"\x89PNG", b"\xff\xd8\xff"), DATA),
}  # fmt: skip
MEMBERS = (
    (
        {"MAR-INF/MANIFEST.json"},
        Recognized("an archive of TorchServe", advice="unzip it, and register the model file that is in it"),
    ),
    ({"config.json", "metadata.json", "model.weights.h5"}, Recognized("a Keras model", None, *_KERAS)),
    ({"schema.json"}, Recognized("a file of skops", None, *_saved('model = skops.io.load("{file}", trusted=[…])'))),
)
_XGBOOST = Recognized("an XGBoost model", None, *_boosted("xgboost", 'xgboost.Booster(model_file="{file}")'))
TEXTS: tuple[tuple[Callable[[bytes], bool], Recognized], ...] = (
    (
        lambda text: text[:15].lower().startswith((b"<!doctype html", b"<html")),
        Recognized("a web page", advice="the download gave an error or a login in the file's place; get the file again"),
    ),
    (lambda text: text.startswith(b"{") and b'"learner"' in text, _XGBOOST),
    (lambda text: text.startswith(b"{L\x00") and b"learner" in text, _XGBOOST),
    (lambda text: text.startswith((b"<?xml", b"<net")) and b"<net " in text, Recognized(
        "a model of OpenVINO", advice="register the ONNX or PyTorch model that it was made of",
    )),
    (lambda text: b"<PMML" in text, Recognized("a PMML file", advice="register the estimator that it was made of")),
)  # fmt: skip
_PART = Recognized("one file of a model folder", advice="register the folder that it lies in")
ENDINGS: tuple[tuple[tuple[str, ...], Recognized], ...] = (
    ((".onnx",), Recognized("an ONNX file", "onnx")),
    ((".index.json", "config.json", "tokenizer.json", "modules.json", "vocab.txt", "merges.txt"), _PART),
    ((".py", ".ipynb"), Recognized(
        "Python code", advice="import it and register the module that it makes, or name its class with runtime='python'",
        lines=(BUILD, REGISTER),
    )),
    ((".csv", ".json", ".jsonl", ".txt", ".feather"), DATA),
    ((".pb",), Recognized(
        "a graph of TensorFlow", None, *_convert("python -m tf2onnx.convert --saved-model FOLDER"),
    )),
    ((".engine", ".plan", ".trt"), Recognized(
        "an engine of TensorRT, made for one kind of GPU", advice="register the ONNX or PyTorch model that it was made of",
    )),
    ((".mlmodel", ".pdparams", ".pdmodel", ".msgpack", ".caffemodel", ".mindir", ".nemo", ".rds", ".mat"), Recognized(
        "a model of a library that no runtime serves", advice="export it to ONNX with that library, and register the .onnx file",
    )),
    ((".pt", ".pth", ".ckpt", ".bin", ".pkl", ".joblib", ".keras", ".h5", ".pt2", ".safetensors", ".gguf", ".mar"), Recognized(
        "not what its name says", advice="its content is of no known kind; it may be damaged, or cut off: write it again",
    )),
)  # fmt: skip
_SAVE_SAFELY = (
    "from transformers import AutoModel  # or the class that config.json names",
    'AutoModel.from_pretrained("{file}").save_pretrained("{file}", safe_serialization=True)',
)
PICKLED_FOLDER = Recognized(
    "a model folder whose weights are pickled, which no worker opens", None,
    "write them as safetensors, take out what is pickled, and register it again", _SAVE_SAFELY,
)  # fmt: skip
_MLFLOW = 'model = mlflow.{0}.load_model("{{file}}")'
MLFLOW = {  # by flavour
    flavour: Recognized(
        f"a model folder of MLflow whose {flavour} flavour is a pickle", None, *_saved(_MLFLOW.format(flavour))
    )
    for flavour in ("sklearn", "pytorch")
} | {
    "transformers": Recognized(
        "a model folder of MLflow with a transformers flavour",
        advice="register the folder `model` in it, which has a config.json",
    ),
    "": Recognized(
        "a model folder of MLflow without a flavour that is served",
        advice="log it with mlflow.onnx too, or register the model that it was made of",
    ),
}
FOLDERS: tuple[tuple[tuple[str, ...], Recognized], ...] = (
    (("saved_model.pb",), Recognized(
        "a SavedModel of TensorFlow", None, *_convert("python -m tf2onnx.convert --saved-model {file}"),
    )),
    (("model.weights.h5",), Recognized("a Keras model, unpacked", advice="save it as one .keras file: model.save('net.keras')")),
    (("model_index.json",), Recognized(
        "a pipeline of diffusers", advice="serve it by a class of your own, which loads the folder: runtime='python'",
    )),
    (("config.pbtxt",), Recognized("a model of Triton's", advice="register the model file in the folder of its version")),
    (("checkpoint",), Recognized(
        "a checkpoint of TensorFlow", advice="write the model as a SavedModel, convert that with tf2onnx, and register the .onnx",
    )),
    (("snapshots",), Recognized("a folder of the Hugging Face cache", advice="register the folder in its snapshots")),
    (("Manifest.json", "Data"), Recognized(
        "a package of Core ML", advice="register the PyTorch or ONNX model that it was made of",
    )),
    (("params.json",), Recognized(
        "a model in Meta's own form", advice="convert it with transformers to a folder with config.json and safetensors",
    )),
    (("hparams.yaml",), Recognized(
        "a log folder of Lightning", advice="build the module with the checkpoint in its checkpoints, and register that",
    )),
)  # fmt: skip
