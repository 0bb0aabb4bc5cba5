"""Runs a class of the operator's own: any library, any pre- and postprocessing.

`options`: `class` = "package.module:Class" on the operator's list. The class has `predict(self, rows)`, and may have
`load(self, path, device)`, `preprocess`, `postprocess`, `cost`, `nbytes` and `sample_row`. Knows allowed.py; what the
class needs is the operator's to install.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from forebay.contract.errors import ForebayError, ModelLoadFailed
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Row
from forebay.worker.allowed import import_allowed

_OPTIONAL = ("preprocess", "postprocess", "cost", "nbytes", "sample_row")


class Python:
    """Makes an instance of the named class."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed = tuple(allowed)

    def load(self, path: Path | None, device: str, spec: ModelVersion) -> PythonModel:
        """The instance after its own `load`; ModelLoadFailed with what its code raised."""
        kind = import_allowed(spec.options.get("class", ""), self._allowed)
        try:
            instance = kind()
            if hasattr(instance, "load"):
                instance.load(path, device)
        except ForebayError:
            raise
        except Exception as error:  # the class is the operator's code
            name = spec.options["class"]
            raise ModelLoadFailed(f"{spec.ref}: {name} raised {type(error).__name__}: {error}") from error
        if not callable(getattr(instance, "predict", None)):
            raise ModelLoadFailed(f"{spec.ref}: {spec.options['class']} has no predict(rows)")
        return PythonModel(instance)


class PythonModel:
    """The instance behind the Model protocol; what it lacks of the optional methods, this lacks too."""

    def __init__(self, instance: Any) -> None:
        self._instance = instance

    def predict(self, rows: Sequence[Row]) -> list[Row]:
        """The class's own predict; ForebayError when it does not give one row per row."""
        torch = sys.modules.get("torch")  # loaded by the class, if it needs it
        with torch.inference_mode() if torch is not None else nullcontext():
            made = list(self._instance.predict(rows))
        if len(made) != len(rows):
            raise ForebayError(f"{type(self._instance).__name__}.predict gave {len(made)} rows for {len(rows)}")
        return made

    def __getattr__(self, name: str) -> Any:
        if name in _OPTIONAL:
            return getattr(self._instance, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
