"""Images and sound through a folder's image processor or feature extractor, and its model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from forebay.contract.errors import InvalidInput, ModelLoadFailed
from forebay.contract.signature import Row
from forebay.worker.runtimes.huggingface.graph import model_bytes
from forebay.worker.runtimes.huggingface.heads import Head, Read
from forebay.worker.runtimes.speed import Forward
from forebay.worker.runtimes.tensors import stack

_WINDOW, _SHIFT = 400, 160  # samples: how an ASTFeatureExtractor cuts sound into frames


class MediaModel(ABC):
    """Rows are processed one by one; what is then of one size shares a batch, so that nothing is padded."""

    def __init__(self, model: Any, forward: Forward, processor: Any, head: Head) -> None:
        self.module, self._forward, self._processor, self.head = model, forward, processor, head

    def preprocess(self, row: Row) -> Row:
        value = next(iter(row.values())) if isinstance(row, Mapping) and len(row) == 1 else row
        return {name: values[0] for name, values in self.process(value).items()}

    @abstractmethod
    def process(self, value: Any) -> Mapping[str, Any]:
        """A batch of one as NumPy arrays, by the library's own processor; InvalidInput for another value."""

    @abstractmethod
    def sample_row(self) -> Row: ...

    def predict(self, rows: Sequence[Row]) -> list[Row]:
        return self.run(self.prepare(rows))

    def prepare(self, rows: Sequence[Row]) -> Any:
        made = stack(rows, None, str(self.module.device))
        return {k: v.to(self.module.dtype) if v.is_floating_point() else v for k, v in made.items()}

    @torch.inference_mode()
    def run(self, prepared: Any) -> list[Row]:
        return self.head.rows(self._forward(**prepared), Read())

    def nbytes(self) -> int:
        return model_bytes(self.module)


class ImageModel(MediaModel):
    """Takes pixels `(height, width, 3)`, red, green and blue from 0 to 255, of images of any sizes."""

    def process(self, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.shape[2:] != (3,):
            raise InvalidInput("this model takes the pixels of one image: uint8 of shape [height, width, 3]")
        made: Mapping[str, Any] = self._processor(
            images=[value], return_tensors="np", input_data_format="channels_last"
        )
        return made

    def sample_row(self) -> Row:
        return {"image": np.zeros((64, 64, 3), np.uint8)}


class AudioModel(MediaModel):
    """Takes samples `(length,)` at the rate of the folder's feature extractor; never cut unasked."""

    def __init__(self, model: Any, forward: Forward, processor: Any, head: Head, *, truncate: bool) -> None:
        super().__init__(model, forward, processor, head)
        self._rate, self._longest = int(processor.sampling_rate), None if truncate else _longest(processor)

    def process(self, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.ndim != 1 or not value.size:
            raise InvalidInput("this model takes the samples of one channel: float32 of shape [length]")
        if self._longest is not None and len(value) > self._longest:
            raise InvalidInput(
                f"the audio lasts {len(value) / self._rate:,.2f} s; this model hears {self._longest / self._rate:,.2f} s. Send "
                "less, or register the version with options={'truncate': True} to have the rest left out"
            )
        made: Mapping[str, Any] = self._processor(value, sampling_rate=self._rate, return_tensors="np")
        return made

    def sample_row(self) -> Row:
        return {"audio": np.zeros(self._rate, np.float32)}


def _longest(extractor: Any) -> int | None:
    """How many samples it takes before it cuts; None: any number."""
    kind = type(extractor).__name__
    if kind == "Wav2Vec2FeatureExtractor":
        return None
    if kind == "WhisperFeatureExtractor":
        return int(extractor.n_samples)
    if kind == "ASTFeatureExtractor":
        return _WINDOW + _SHIFT * int(extractor.max_length) - 1
    raise ModelLoadFailed(f"its {kind} may cut sound without a word; with options={{'truncate': True}} it may")
