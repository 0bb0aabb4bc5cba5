"""What can be known of an artifact without loading it: its runtime, its signature, whether it is safe to open. No torch."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from forebay.contract.runtimes import NEEDS, installed_runtimes
from forebay.contract.runtimes.endpoints import REMOTE, RemoteOptions
from forebay.contract.runtimes.folders import TRANSFORMERS, ModelFolder, folder_runtime
from forebay.contract.signature import Signature
from forebay.contract.wire import codec
from forebay.datasets.formats.files import absolute, find_files, open_file
from forebay.producer.inputs import pack_example
from forebay.producer.objects import Described, is_object, write_object
from forebay.producer.recognition.files import recognize_file
from forebay.producer.recognition.folders import describe_folder, mlflow_model, pickled_folder
from forebay.storage.blobs.folders import pack_folder
from forebay.storage.blobs.store import BlobStore
from forebay.storage.workers import WorkerInfo, lacks_runtime

FILES = (".pt2", ".safetensors", ".onnx", ".gguf")
FOLDERS_ONLY = ("sentence-transformers", TRANSFORMERS, TEXT_GENERATION)
NEEDS_OPTION = {"safetensors": "factory", "python": "class"}
_RUNTIME = re.compile(r"[a-z][a-z0-9-]{0,63}")


@contextmanager
def local_artifact(
    artifact: Any, example: Any, inputs: Described | None, runtime: str | None = None
) -> Iterator[Path | None]:
    """The file or folder, None for none. What a URL names is copied to this machine meanwhile, and an object of a library
    written to a file. InvalidInput for nothing.
    """  # fmt: skip
    if is_object(artifact):
        with tempfile.TemporaryDirectory(prefix="forebay-") as folder:
            yield write_object(artifact, example, inputs, Path(folder))
        return
    if not isinstance(artifact, str) or "://" not in artifact:
        yield _unwrapped(existing_artifact(artifact), runtime)
        return
    with tempfile.TemporaryDirectory(prefix="forebay-") as folder:
        yield _unwrapped(_fetched(artifact.rstrip("/"), Path(folder)), runtime)


def _unwrapped(path: Path | None, runtime: str | None) -> Path | None:
    """Of a folder of MLflow the model in it, unless a runtime of another kind is to read the folder."""
    if path is None or runtime not in (None, "onnx", "torch-export") or not (path / "MLmodel").is_file():
        return path
    return mlflow_model(path)


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
    try:
        path = Path(artifact).expanduser()
        if not path.exists():
            raise InvalidInput(
                f"there is no artifact at {shown(str(artifact))}; give a .pt2, .onnx or .safetensors file, or a model folder"
            )
        if path.is_dir() and not any(path.iterdir()):
            raise InvalidInput(f"the model folder {shown(str(artifact))} is empty")
        if not path.is_dir() and not path.is_file():
            raise InvalidInput(f"the artifact {shown(str(artifact))} is neither a file nor a folder")
    except (OSError, TypeError, RuntimeError) as error:  # not permitted, a name too long, no path, an unknown ~user
        reason = getattr(error, "strerror", None) or shown(str(error))
        raise InvalidInput(f"the artifact {shown(artifact)} cannot be read: {reason}") from error
    return path


def runtime_of(path: Path | None, runtime: str | None) -> str:
    """The runtime that serves a file or folder, or the one that was given; InvalidInput, with what to do, for one of another."""
    try:
        if runtime is None:
            return _guess_runtime(path)
        return _check_fits(path, _check_runtime(runtime))
    except OSError as error:
        raise InvalidInput(f"the artifact {shown(str(path))} cannot be read: {error.strerror or error}") from error


def _check_fits(path: Path | None, runtime: str) -> str:
    if path is not None and path.is_file():
        found = recognize_file(path) if runtime in ("torch-export", "safetensors") else None
        if found is not None and found.runtime not in (None, runtime):
            raise InvalidInput(f"{shown(path.name)} is {found.what}, of runtime {found.runtime!r}, not {runtime!r}")
        if found is not None and found.runtime is None:
            raise InvalidInput(found.told(path))
        if runtime in FOLDERS_ONLY:
            raise InvalidInput(
                f"{shown(path.name)} is a file; runtime {runtime!r} takes the folder that save_pretrained writes"
            )
    elif path is not None and runtime in FOLDERS_ONLY:
        _check_weights(path)
    return runtime


def check_options(runtime: str, options: Mapping[str, Any], endpoints: Iterable[str]) -> None:
    """InvalidInput for options that the runtime does not take; `endpoints` are those that the operator allows."""
    if runtime == REMOTE:
        RemoteOptions.parse(options).check_allowed(endpoints)
    threads = options.get("threads", 1)
    if runtime == "onnx" and (type(threads) is not int or threads < 1):
        raise InvalidInput(f"options: threads is a whole number from 1, got {shown(threads)}")
    for name in ("orientation", "truncate"):
        if not isinstance(options.get(name, True), bool):
            raise InvalidInput(f"options: {name} is true or false, got {shown(options[name])}")
    key = NEEDS_OPTION.get(runtime)
    if key and not isinstance(options.get(key), str):
        raise InvalidInput(
            f"runtime {runtime!r} needs options={{{key!r}: 'package.module:name'}}, got {shown(options)}"
        )


def check_served(runtime: str, queue: str, workers: Sequence[WorkerInfo]) -> None:
    """InvalidInput for a runtime that no worker of the queue has; without such a worker, for one that nobody knows."""
    why = lacks_runtime(runtime, queue, workers)
    known = runtime in (*NEEDS, *installed_runtimes()) or any(queue in worker.queues for worker in workers)
    if not why and not known:
        why = f"no runtime {runtime!r} is alive on any worker or installed here"
    if why:
        raise InvalidInput(f"{why}; Forebay's own are {', '.join(NEEDS)}")


def checked_example(draft: ModelVersion, path: Path | None, example: Any) -> bytes | None:
    """The example as it is kept with the version. InvalidInput for one that the version does not take, and for an ONNX file that
    makes of a row something else beside others.
    """  # fmt: skip
    row = None if example is None else pack_example(draft, example)
    if draft.runtime == "onnx" and path is not None and not (path / "recipe.json").is_file():
        from forebay.export.graphs import check_rows

        check_rows(read_onnx(path), draft.signature, None if row is None else codec.decode(row))
    return row


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


def store(blobs: BlobStore, path: Path | None) -> tuple[str, str, int]:
    """An artifact's blob, its form and its bytes."""
    if path is None:
        return "", "none", 0
    if path.is_file():
        return blobs.put_file(path), "file", path.stat().st_size
    with tempfile.TemporaryDirectory(prefix="forebay-") as folder:
        archive = Path(folder) / "artifact.tar"
        pack_folder(path, archive)
        return blobs.put_file(archive), "folder", archive.stat().st_size


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
    if path.is_file():
        known = recognize_file(path)
        if known is not None and known.runtime is not None:
            return known.runtime
        unknown = (
            "of no known kind; give a .pt2, .onnx or .safetensors file, a model folder, or the runtime= that serves it"
        )
        raise InvalidInput(known.told(path) if known else f"{shown(path.name)} is {unknown}, one of {', '.join(NEEDS)}")
    if any(path.glob("*.onnx")) and not any(path.glob("*.safetensors")):
        return "onnx"
    found = folder_runtime(path)
    if found is None:
        raise InvalidInput(describe_folder(path))
    _check_weights(path)
    return found


def _check_weights(path: Path) -> None:
    if (why := pickled_folder(path)) is not None:
        raise InvalidInput(why)


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
