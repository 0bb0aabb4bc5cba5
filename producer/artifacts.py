"""What can be known of an artifact without loading it: its runtime, its signature, whether it is safe to open. No torch."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from forebay.contract import generation
from forebay.contract.errors import InvalidInput
from forebay.contract.model import GENERATES_TEXT, TEXT_GENERATION, ModelVersion
from forebay.contract.onnx.judge import read_onnx
from forebay.contract.pt2.archive import read_pt2_signature
from forebay.contract.references import shown
from forebay.contract.requests.endpoints import REMOTE, RemoteOptions
from forebay.contract.requests.folders import TRANSFORMERS, ModelFolder, folder_runtime
from forebay.contract.runtimes import NEEDS
from forebay.contract.signature import Signature
from forebay.datasets.formats.files import absolute, find_files, open_file

Described = Mapping[str, Mapping[str, Any]]

FILES = (".pt2", ".safetensors", ".onnx", ".gguf")
PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".joblib")
EXPORT = "export the module with torch.export.export, and write it with torch.export.save as a .pt2"
NEEDS_OPTION = {"safetensors": "factory", "python": "class"}
BY_SUFFIX = {".pt2": "torch-export", ".safetensors": "safetensors", ".onnx": "onnx"}
_RUNTIME = re.compile(r"[a-z][a-z0-9-]{0,63}")


@contextmanager
def local_artifact(artifact: str | Path | None) -> Iterator[Path | None]:
    """The file or folder, None for none; what a URL names is copied to this machine meanwhile. InvalidInput for nothing."""
    if not isinstance(artifact, str) or "://" not in artifact:
        yield existing_artifact(artifact)
        return
    with tempfile.TemporaryDirectory(prefix="forebay-") as folder:
        yield _fetched(artifact.rstrip("/"), Path(folder))


def _fetched(url: str, folder: Path) -> Path:
    """A copy of a file, or of each file of a folder, at a URL."""
    is_file = PurePosixPath(urlsplit(url).path).suffix in FILES  # a web server would send it whole to tell
    files = [url] if is_file else [file.path for file in find_files(url, ("",))]
    target, base = folder / PurePosixPath(url).name, url if is_file else absolute(url)
    for file in files:
        path = target / file.removeprefix(base).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_file(file) as source, path.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    return target


def existing_artifact(artifact: str | Path | None) -> Path | None:
    if artifact is None:
        return None
    if callable(getattr(artifact, "forward", None)):
        raise InvalidInput(f"the artifact is a {type(artifact).__name__}, not a file: {EXPORT}")
    try:
        path = Path(artifact).expanduser()
        if not path.exists():
            raise InvalidInput(
                f"there is no artifact at {shown(str(artifact))}; give a .pt2, .onnx or .safetensors file, or a model folder"
            )
        if path.is_dir() and not any(path.iterdir()):
            raise InvalidInput(f"the model folder {shown(str(artifact))} is empty")
    except (OSError, TypeError, RuntimeError) as error:  # not permitted, a name too long, no path, an unknown ~user
        reason = getattr(error, "strerror", None) or shown(str(error))
        raise InvalidInput(f"the artifact {shown(artifact)} cannot be read: {reason}") from error
    return path


def runtime_of(path: Path | None, runtime: str | None) -> str:
    return _guess_runtime(path) if runtime is None else _check_runtime(runtime)


def check_options(runtime: str, options: Mapping[str, Any], endpoints: Iterable[str]) -> None:
    """InvalidInput for options that the runtime does not take; `endpoints` are those that the operator allows."""
    if runtime == REMOTE:
        RemoteOptions.parse(options).check_allowed(endpoints)
    threads = options.get("threads", 1)
    if runtime == "onnx" and (type(threads) is not int or threads < 1):
        raise InvalidInput(f"options: threads is a whole number from 1, got {shown(threads)}")
    if not isinstance(options.get("orientation", True), bool):
        raise InvalidInput(f"options: orientation is true or false, got {shown(options['orientation'])}")
    key = NEEDS_OPTION.get(runtime)
    if key and not isinstance(options.get(key), str):
        raise InvalidInput(
            f"runtime {runtime!r} needs options={{{key!r}: 'package.module:name'}}, got {shown(options)}"
        )


@contextmanager
def storable(runtime: str, path: Path | None) -> Iterator[Path | None]:
    """What is stored of an artifact: of an ONNX file it and the data files that it names, of all else the whole."""
    if runtime != "onnx" or path is None:
        yield path
        return
    facts = read_onnx(path)
    if not facts.data:
        yield facts.path
        return
    with tempfile.TemporaryDirectory(prefix="forebay-") as folder:
        for name in {facts.path.name, *facts.data}:
            link = Path(folder, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((facts.path.parent / name).resolve())
        yield Path(folder)


def adaptable(named: Any, find: Callable[[str], ModelVersion]) -> ModelVersion:
    """The version that an adapter is to be on; InvalidInput when it takes none."""
    if not isinstance(named, str) or not named:
        raise InvalidInput(
            "base: which language model is adapted? Name a registered version, such as base=smollm@champion"
        )
    base: ModelVersion = find(named)
    if base.runtime != TEXT_GENERATION:
        raise InvalidInput(f"base: {base.ref} has runtime {base.runtime!r}; only {TEXT_GENERATION!r} is adapted")
    if base.base is not None:
        raise InvalidInput(f"base: {base.ref} is itself an adapter of {base.base}; name that one")
    return base


def artifact_signature(
    runtime: str, path: Path | None, options: Mapping[str, Any], inputs: Described | None, outputs: Described | None
) -> Signature:
    if runtime == "torch-export" and path is not None:
        own_inputs, own_outputs = read_pt2_signature(path)
        inputs = own_inputs if inputs is None else inputs
        outputs = _completed(own_outputs, outputs)
    if runtime == "onnx" and path is not None:
        facts = read_onnx(path)
        inputs, outputs = facts.inputs if inputs is None else inputs, _completed(facts.outputs, outputs)
    if runtime == TRANSFORMERS:
        if path is None or not path.is_dir():
            raise InvalidInput(f"a model of runtime {TRANSFORMERS!r} is a folder, as save_pretrained writes it")
        folder = ModelFolder(path, options)
        inputs = folder.inputs() if inputs is None else inputs
        outputs = folder.outputs() if outputs is None else outputs
    if runtime == "sentence-transformers" and inputs is None:
        inputs = {"text": {"dtype": "str"}}
    if runtime == REMOTE:
        if path is not None or inputs is not None or outputs is not None:
            raise InvalidInput(
                f"a model of runtime {REMOTE!r} has no artifact, and its endpoint tells its inputs and outputs"
            )
        if options.get("endpoint") == "embeddings":
            inputs, outputs = {"text": {"dtype": "str"}}, {"embedding": {"dtype": "float32", "shape": [-1]}}
    if runtime in GENERATES_TEXT:
        inputs = generation.INPUTS if inputs is None else inputs
        outputs = generation.OUTPUTS if outputs is None else outputs
    return Signature.parse(inputs, outputs)


def _check_runtime(name: Any) -> str:
    if not isinstance(name, str) or not _RUNTIME.fullmatch(name):
        raise InvalidInput(f"{shown(name)} is not a runtime; there are {', '.join(NEEDS)}, and those of plugins")
    return name


def _guess_runtime(path: Path | None) -> str:
    if path is None:
        raise InvalidInput(
            "a model without an artifact needs runtime='python' and options={'class': 'package.module:Class'}, or "
            f"runtime={REMOTE!r} and options={{'base_url': 'http://gpu7:8000/v1', 'model': 'Qwen3'}}"
        )
    if path.is_file() and path.suffix in BY_SUFFIX:
        return BY_SUFFIX[path.suffix]
    if any(path.glob("*.onnx")) and not any(path.glob("*.safetensors")):
        return "onnx"
    found = folder_runtime(path)
    if found is not None:
        return found
    if path.suffix in PICKLED:
        raise InvalidInput(
            f"{shown(path.name)} looks like a file of torch.save or TorchScript, which runs code when it is opened and is not "
            f"served: {EXPORT}; or save its weights as .safetensors"
        )
    raise InvalidInput(f"{shown(path.name)} could be of several runtimes; give runtime=, one of {', '.join(NEEDS)}")


def _completed(own: Described | None, given: Any) -> Any:
    """The outputs as given, with dtype and shape from the archive where only classes are named."""
    if own is None or not isinstance(given, Mapping):
        return own if given is None else given
    unknown = next((name for name, spec in given.items() if name not in own and _names_classes(spec)), None)
    if unknown is not None:
        raise InvalidInput(f"outputs: the artifact has no output {shown(unknown)}; it has {', '.join(map(shown, own))}")
    return {
        name: {**own[name], **spec} if name in own and _names_classes(spec) else spec for name, spec in given.items()
    }


def _names_classes(spec: Any) -> bool:
    return isinstance(spec, Mapping) and [*spec] == ["classes"]
