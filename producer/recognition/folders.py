"""What a folder is that no runtime is for."""

from __future__ import annotations

from pathlib import Path

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.producer.recognition.files import recognize_file
from forebay.producer.recognition.known import FOLDERS, MLFLOW, PICKLED_FOLDER

_MOST_NAMED = 5
_POINTER = b"version https://git-lfs"


def pickled_folder(path: Path) -> str | None:
    """Why a library's folder is not served: its weights are pickles, or were never fetched. None when they are there."""
    weights = [*path.rglob("*.safetensors")]
    if (empty := next((file for file in weights if _is_pointer(file)), None)) is not None:
        return f"{shown(empty.name)} is a pointer of Git LFS, not the weights: run `git lfs pull` in {shown(str(path))}"
    if not weights and any(
        any(path.rglob(f"*{ending}")) for ending in (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
    ):
        return PICKLED_FOLDER.told(path)
    return None


def mlflow_model(path: Path) -> Path:
    """Of a folder of MLflow the ONNX model or the exported program in it; the folder itself where it has neither."""
    flavours = _flavours(path / "MLmodel")
    for flavour, key in (("onnx", "data"), ("pytorch", "model_data")):
        if flavour not in flavours:
            continue
        inner = path / flavours[flavour].get(key, "data")
        if not inner.resolve().is_relative_to(path.resolve()):
            raise InvalidInput(f"{shown(path.name)}: MLmodel names {shown(str(inner))}, which is outside its folder")
        if flavour == "onnx":
            return inner
        programs = sorted(inner.rglob("*.pt2"))
        if len(programs) == 1:
            return programs[0]
    return path


def _flavours(file: Path) -> dict[str, dict[str, str]]:
    """Of the YAML that MLflow writes: each flavour with its plain values."""
    found: dict[str, dict[str, str]] = {}
    inside, current = False, dict[str, str]()
    for line in file.read_text("utf-8", "replace").splitlines():
        indent, (name, _, value) = len(line) - len(line.lstrip()), line.strip().partition(":")
        if not indent:
            inside = name == "flavors"
        elif inside and indent == 2 and not value.strip():
            current = found[name] = {}
        elif inside and indent == 4:
            current[name] = value.strip().strip("'\"")
    return found


def describe_folder(path: Path) -> str:
    """What a folder is, and what to register in its place."""
    names = sorted(entry.name for entry in path.iterdir())
    if "MLmodel" in names:
        flavours = _flavours(path / "MLmodel")
        return MLFLOW[next((name for name in MLFLOW if name in flavours), "")].told(path)
    for marks, kind in FOLDERS:
        if {*marks} <= {*names}:
            return kind.told(path)
    files = [entry for name in names if (entry := path / name).is_file()]
    served = [file for file in files if (found := recognize_file(file)) is not None and found.runtime is not None]
    if len(served) > 1 and all(file.suffix == ".safetensors" for file in served):
        needs = "runtime='safetensors' and options={'factory': 'package.module:name'}"
        return f"{shown(path.name)} is a folder of weights: give {needs}"
    if served:
        listed = ", ".join(shown(str(file)) for file in served[:_MOST_NAMED])
        return f"{shown(path.name)} is a folder without a config.json: register the model file itself: {listed}"
    if (below := next((name for name in names if (path / name / "config.json").is_file()), None)) is not None:
        return f"{shown(path.name)} is not a model folder, but one is in it: register {shown(str(path / below))}"
    if "config.json" in names:
        return f"{shown(path.name)} has a config.json without an architecture: save model and tokenizer with save_pretrained"
    if len(files) == 1 and (only := recognize_file(files[0])) is not None:
        return f"the folder {shown(path.name)} holds one file: {only.told(files[0])}"
    listed = ", ".join(names[:_MOST_NAMED]) + (" …" if len(names) > _MOST_NAMED else "")
    return (
        f"the folder {shown(path.name)} ({listed}) is of no kind that is served: give a .pt2, .onnx or .safetensors file, or a "
        "folder as save_pretrained writes it; or runtime='python', with which a class of yours reads any folder"
    )


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER
