"""A model version as both ends see it: what it takes, what it gives, what it needs, where its artifact lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from forebay.contract.signature import Signature


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One registered version; immutable but for its aliases.

    `artifact` names a blob (`sha256:<hex>`), or is empty for a runtime that needs none; `artifact_form` is `file`, `folder`
    (stored as a tar) or `none`. `resources` are those of `forebay.contract.queues.Resources`, sizes in bytes.
    `options` go to the runtime as they are. A batch has at most `max_batch_size` rows and, padded to its longest row,
    `max_batch_tokens` tokens (what a token is, the runtime says; None: any number). `dtype` ("bfloat16", "float16") computes
    under autocast, `compile` compiles the forward pass when the version is loaded. `timeout_s` is the
    longest that one step of a batch may take (its forward pass, or what the runtime does to a row before or after it).
    """

    name: str
    version: int
    runtime: str
    artifact: str
    artifact_form: str
    artifact_bytes: int
    signature: Signature
    max_batch_size: int = 32
    batch_wait_timeout_s: float = 0.0
    max_batch_tokens: int | None = None
    dtype: str | None = None
    compile: bool = False
    timeout_s: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    created_at: datetime | None = None
    aliases: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        """`name/version`, the reference that always means this version."""
        return f"{self.name}/{self.version}"
