"""Evaluation jobs as both ends see them: which rows a model version is to be tried on, and what they are held against.

Knows nothing of torch, Arrow or SQL. What came of it is storage.training_records.Evaluation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import IMAGES, BatchRequest, InputFile


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """What an evaluation is to do, as its payload holds it.

    `columns` names for each input of the model the columns that make it, `target` the column with what is true, `output` the
    model's output that is held against it (None: what a classifier gives, or the only one). `row_bytes` is about what a row
    takes up in a text file. `dataset` is what the user called it.
    """

    files: tuple[InputFile, ...]
    format: str
    target: str
    columns: Mapping[str, tuple[str, ...]]
    output: str | None = None
    row_bytes: int = 0
    dataset: str = ""

    @property
    def reading(self) -> BatchRequest:
        """What a batch that reads the same rows would be asked: they are read in the same way."""
        target = "path" if self.format == IMAGES else self.target  # an image's folder tells its label
        keep = () if any(target in columns for columns in self.columns.values()) else (target,)
        return BatchRequest(self.files, "", self.format, self.columns, keep, row_bytes=self.row_bytes)

    def dump(self) -> bytes:
        """The request as bytes."""
        return json.dumps(asdict(self) | {"files": [[f.path, f.size] for f in self.files]}).encode()

    @classmethod
    def load(cls, data: bytes) -> EvaluateRequest:
        """From those bytes; InvalidInput when they are no request."""
        try:
            given = json.loads(data)
            files = tuple(InputFile(path, size) for path, size in given["files"])
            columns = {name: tuple(columns) for name, columns in given["columns"].items()}
            return cls(**given | {"files": files, "columns": columns})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidInput(f"these bytes are no evaluation request: {type(error).__name__}") from error

    def fingerprint(self, model: str) -> str:
        """Equal for requests that ask for the same."""
        about = asdict(self) | {"row_bytes": 0, "model": model}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
