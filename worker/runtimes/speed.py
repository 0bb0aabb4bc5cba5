"""How a version's forward pass is computed: under autocast, compiled, as its registration says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from forebay.contract.model import ModelVersion

Forward = Callable[..., Any]


def tuned(forward: Forward, spec: ModelVersion, device: str) -> Forward:
    """`forward` with the version's `dtype` and `compile`; itself when it asks for neither.

    What compiling costs is paid by the warm-up: torch compiles at the first call.
    """
    if spec.compile:
        forward = torch.compile(forward, dynamic=True)
    if spec.dtype is None:
        return forward
    kind, dtype = device.partition(":")[0], getattr(torch, spec.dtype)

    def under_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(kind, dtype=dtype):
            return pytree.tree_map(_full_precision, forward(*args, **kwargs))

    return under_autocast


def _full_precision(value: Any) -> Any:
    """What comes out is float32, as the signature says, whatever it was computed in."""
    narrow = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if narrow else value
