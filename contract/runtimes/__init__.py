"""The runtimes that Forebay has, and what each needs. Nothing is imported to find out."""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec

GROUP = "forebay.runtimes"  # the entry points by which other packages add theirs

# What a built-in runtime needs: (module, extra of forebay that brings it)
NEEDS: dict[str, tuple[tuple[str, str], ...]] = {
    "torch-export": (("torch", "worker"),),
    "safetensors": (("torch", "worker"), ("safetensors", "worker")),
    "python": (),
    "onnx": (("onnx", "onnx"), ("onnxruntime", "onnx")),
    "sentence-transformers": (("torch", "worker"), ("sentence_transformers", "text")),
    "text-generation": (("torch", "worker"), ("transformers", "generation")),
    "transformers": (("torch", "worker"), ("transformers", "transformers")),
    "recipe": (("torch", "worker"), ("safetensors", "worker"), ("pyarrow", "batch")),
    "openai": (("aiohttp", "remote"),),
}


def missing(name: str) -> tuple[str, str] | None:
    """The first module that a runtime needs and this Python lacks, and the extra that brings it; None when all are there."""
    return next((need for need in NEEDS.get(name, ()) if find_spec(need[0]) is None), None)


def installed_runtimes() -> tuple[str, ...]:
    """The names of those that this Python can run, those of other packages included."""
    return tuple(sorted({name for name in NEEDS if missing(name) is None} | entry_points(group=GROUP).names - {*NEEDS}))
