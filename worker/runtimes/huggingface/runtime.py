"""Loads what `save_pretrained` of a transformers model and of its tokenizer or processor wrote: offline, from safetensors
only, and without remote code. In a folder that a conversion made, an ONNX graph is in the place of the weights.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from forebay.contract.errors import ForebayError, MissingExtra, ModelLoadFailed
from forebay.contract.model import ModelVersion
from forebay.contract.references import shown
from forebay.contract.runtimes.folders import GRAPH, WEIGHTS, ModelFolder
from forebay.worker.packed_weights import unpacked
from forebay.worker.runtimes.folders import go_offline, safe_folder
from forebay.worker.runtimes.huggingface.graph import graph_model
from forebay.worker.runtimes.huggingface.heads import head_of
from forebay.worker.runtimes.huggingface.media import AudioModel, ImageModel
from forebay.worker.runtimes.huggingface.texts import TextModel
from forebay.worker.runtimes.speed import tuned

_AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "feature-extraction": "AutoModel",
}
_LOCAL = {"trust_remote_code": False, "local_files_only": True}


class Transformers:
    """Loads a folder by the task that its config.json or the version's options name."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        del allowed  # nothing but the library's own code runs

    def load(self, path: Path | None, device: str, spec: ModelVersion) -> TextModel | ImageModel | AudioModel:
        """The model on `device`; ModelRefused naming what is unsafe, ModelLoadFailed for what does not work."""
        root = safe_folder(path, spec)
        library = _library()
        try:
            folder = ModelFolder(root, spec.options, GRAPH if spec.runtime == "onnx" else WEIGHTS)
            if folder.weights == GRAPH:
                config = library.AutoConfig.from_pretrained(str(root), **_LOCAL)
                model: Any = graph_model(root, config, device, spec)
            else:
                with unpacked(root) as whole:
                    model = _model(library, whole, folder, device)
            head = head_of(folder, model)
            forward = tuned(model, spec, device)
            if folder.takes == "image":
                # one backend, so that an image gives the same wherever torchvision is installed or not
                processor = library.AutoImageProcessor.from_pretrained(str(root), backend="pil", **_LOCAL)
                return ImageModel(model, forward, processor, head)
            if folder.takes == "audio":
                extractor = library.AutoFeatureExtractor.from_pretrained(str(root), **_LOCAL)
                return AudioModel(model, forward, extractor, head, truncate=folder.options.truncate)
            tokenizer = library.AutoTokenizer.from_pretrained(str(root), **_LOCAL)
            return TextModel(model, forward, tokenizer, head, truncate=folder.options.truncate)
        except ForebayError as error:
            raise type(error)(f"{spec.ref}: {error}") from error
        except Exception as error:  # the library raises whatever its layers raise
            raise ModelLoadFailed(f"{spec.ref}: transformers cannot load it: {error}") from error


def _model(library: Any, root: Path, folder: ModelFolder, device: str) -> Any:
    """The module; ModelLoadFailed unless the folder has every weight of it, for the library makes up those that are missing."""
    model, found = getattr(library, _AUTO[str(folder.task)]).from_pretrained(
        str(root), use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True,  # which are refused below
        dtype=torch.float32 if device == "cpu" else "auto", **_LOCAL,
    )  # fmt: skip
    kind = type(model).__name__
    pooled = folder.options.pooling == "pooler"
    features = folder.task == "feature-extraction"
    missing = sorted(k for k in found["missing_keys"] if not (features and not pooled and k.startswith("pooler.")))
    missing += sorted(key for key, *_ in found["mismatched_keys"])
    if missing:
        raise ModelLoadFailed(f"the folder has no fitting weights for {', '.join(missing[:5])} of {kind}")
    if not features and folder.architectures and kind not in folder.architectures:
        raise ModelLoadFailed(
            f"its architectures {shown(folder.architectures)} are not {kind}, which {folder.task} takes"
        )
    return model.to(device).eval()


def _library() -> Any:
    go_offline()
    try:
        import transformers
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise MissingExtra("this runtime needs transformers", "transformers") from error
    disable_progress_bar()
    return transformers
