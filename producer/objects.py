"""Objects of libraries that somebody registers, written as the files that runtimes serve. No library is imported before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forebay.contract.errors import InvalidInput
from forebay.contract.references import described
from forebay.contract.signature import Signature
from forebay.producer.inputs import is_a, sample

Described = Mapping[str, Mapping[str, Any]]

# What is not taken as an object, by package and class: a sentence.
_ELSEWHERE = (
    ("sentence_transformers", "SentenceTransformer", "save it with model.save('folder'), and register the folder"),
    ("transformers", "GenerationMixin", "save it and its tokenizer with save_pretrained, and register the folder"),
    ("transformers", "Pipeline", "save it with pipeline.save_pretrained('folder'), and register the folder"),
    (
        "transformers",
        "PreTrainedTokenizerBase",
        "save it beside its model with save_pretrained, and register the folder",
    ),
    ("onnx", "ModelProto", "write it with onnx.save(model, 'net.onnx'), and register the file"),
    ("keras", "Model", "write it with model.export('net.onnx', format='onnx'), and register the file"),
    ("tensorflow", "Module", "convert it with tf2onnx, and register the .onnx file"),
)


def is_object(artifact: Any) -> bool:
    """Whether it is no path, URL or None."""
    return artifact is not None and not isinstance(artifact, str | bytes) and not hasattr(artifact, "__fspath__")


def write_object(artifact: Any, example: Any, inputs: Described | None, folder: Path) -> Path:
    """The file in `folder` that was made of the object; InvalidInput, with what to do, for one that is not taken."""
    for package, name, advice in _ELSEWHERE:
        if is_a(artifact, package, name):
            raise InvalidInput(f"the artifact is a {type(artifact).__name__}, not a file: {advice}")
    if is_a(artifact, "torch", "ExportedProgram"):
        from forebay.export.modules import export_program

        export_program(artifact, path := folder / "artifact.pt2")
    elif is_a(artifact, "torch", "Module"):
        from forebay.export.modules import export_module

        export_module(artifact, *_module_example(example, inputs), path := folder / "artifact.pt2")
    elif is_a(artifact, "sklearn", "BaseEstimator"):
        from forebay.export.estimators import export_estimator

        export_estimator(artifact, example, path := folder / "artifact.onnx")
    elif isinstance(artifact, Mapping):
        path = _write_weights(artifact, folder / "artifact.safetensors")
    else:
        raise InvalidInput(_refused(artifact))
    return path


def _module_example(example: Any, inputs: Described | None) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """One sample, and its dimensions that are declared free."""
    if example is None:
        raise InvalidInput(
            "a module is exported with a sample: give example=, one as predict takes it, or a dict of them by forward's names"
        )
    if inputs is None:
        return sample(Signature(), example), {}
    signature = Signature.parse(inputs)
    row = signature.row(sample(signature, example))
    free = {
        field.name: tuple(i for i, size in enumerate(field.shape) if size == -1) for field in signature.inputs or ()
    }
    if len(row) == 1:  # its name is the user's, and need not be that of forward's parameter
        return row.popitem()[1], {"": free.popitem()[1]}
    return row, free


def _write_weights(weights: Mapping[Any, Any], path: Path) -> Path:
    """A state dict as a .safetensors file."""
    nested = next((key for key, value in weights.items() if isinstance(value, Mapping)), None)
    if nested is not None:
        raise InvalidInput(
            f"the artifact is a dict with more than weights, as checkpoints are: register those alone, artifact[{nested!r}]"
        )
    wrong = next(
        (key for key, value in weights.items() if not (isinstance(key, str) and is_a(value, "torch", "Tensor"))), None
    )
    if wrong is not None or not weights:
        raise InvalidInput(
            "the artifact is a dict, but not a state dict: its values must be tensors, by names"
            + ("" if wrong is None else f"; {wrong!r:.80} is a {type(weights[wrong]).__name__}")
        )
    from forebay.export.modules import write_weights

    write_weights(weights, path)
    return path


def _refused(artifact: Any) -> str:
    if isinstance(artifact, type):
        return f"the artifact is the class {artifact.__name__}: register an instance of it"
    if is_a(artifact, "numpy", "ndarray") or is_a(artifact, "torch", "Tensor"):
        return f"the artifact is {described(artifact)}, which is data; register a module, or the path of a model's file"
    if callable(artifact):
        return (
            f"the artifact is a {type(artifact).__name__}, which cannot be stored; wrap it in a torch.nn.Module whose forward "
            "calls it, or name a class with runtime='python'"
        )
    return (
        f"the artifact is a {type(artifact).__name__}; give a torch.nn.Module, an ExportedProgram, a state dict or an estimator "
        "of scikit-learn, or the path or URL of a model's file or folder"
    )
