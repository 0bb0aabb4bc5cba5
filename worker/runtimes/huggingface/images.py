"""Images through a folder's image processor and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from forebay.contract.errors import InvalidInput
from forebay.contract.signature import Row
from forebay.worker.runtimes.huggingface.heads import Head, Read
from forebay.worker.runtimes.speed import Forward
from forebay.worker.runtimes.tensors import module_bytes, stack


class ImageModel:
    """Takes pixels `(height, width, 3)`, red, green and blue from 0 to 255."""

    def __init__(self, model: Any, forward: Forward, processor: Any, head: Head) -> None:
        self._model, self._forward, self._processor, self._head = model, forward, processor, head

    def preprocess(self, row: Row) -> Row:
        """What the library's processor makes of the image: the same size for all, so that images of any sizes share a batch."""
        pixels = next(iter(row.values())) if isinstance(row, Mapping) and len(row) == 1 else row
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[2:] != (3,):
            raise InvalidInput("this model takes the pixels of one image: uint8 of shape [height, width, 3]")
        made = self._processor(images=[pixels], return_tensors="np", input_data_format="channels_last")
        return {name: values[0] for name, values in made.items()}

    def predict(self, rows: Sequence[Row]) -> list[Row]:
        return self.run(self.prepare(rows))

    def prepare(self, rows: Sequence[Row]) -> Any:
        made = stack(rows, None, str(self._model.device))
        return {k: v.to(self._model.dtype) if v.is_floating_point() else v for k, v in made.items()}

    @torch.inference_mode()
    def run(self, prepared: Any) -> list[Row]:
        return self._head.rows(self._forward(**prepared), Read())

    def sample_row(self) -> Row:
        return {"image": np.zeros((64, 64, 3), np.uint8)}

    def nbytes(self) -> int:
        return module_bytes(self._model)
