"""A model version as all parts see it: its signature, its artifact, what it needs, and how it is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

from forebay.contract.references import ModelRef
from forebay.contract.runtimes.endpoints import REMOTE
from forebay.contract.runtimes.folders import TEXT_GENERATION as TEXT_GENERATION
from forebay.contract.signature import Signature

GENERATES_TEXT = (TEXT_GENERATION, REMOTE)  # the runtimes of language models


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A registered version. Only its aliases can change, and by a benchmark its `max_batch_size`.

    `artifact` names a blob (`sha256:<hex>`), or is empty if the runtime needs none; `artifact_form` is `file`, `folder`
    (stored as a tar) or `none`. `resources` are those of `forebay.contract.queues.Resources`, sizes in bytes. `options` are
    passed to the runtime; `orientation` among them says whether image files are turned as their tags say. A batch has at most
    `max_batch_size` rows and, padded to its longest row, `max_batch_tokens` tokens (the runtime defines what a token is;
    None: any number). With `dtype` ("bfloat16", "float16") it computes under autocast; with `compile` the forward pass is
    compiled when the version is loaded. `timeout_s` limits each step of a batch: its forward pass, and what the runtime does
    with a row before and after. `has_example` says whether a sample was registered with it.
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
    has_example: bool = False

    @property
    def ref(self) -> str:
        """`name/version`, the reference that always means this version."""
        return f"{self.name}/{self.version}"

    @property
    def base(self) -> ModelRef | None:
        """The version that this one is an adapter of; None for a whole model."""
        named = self.options.get("base") if self.runtime == TEXT_GENERATION else None
        return None if named is None else ModelRef.parse(named)

    @property
    def remote(self) -> bool:
        """Whether another server runs it: it needs no device, and its rows wait for answers side by side."""
        return self.runtime == REMOTE

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of its probabilities or scores; () where it declares none."""
        return next((field.classes for field in self.signature.outputs or () if field.classes), ())

    @property
    def oriented(self) -> bool:
        """Whether image files are turned as their orientation tags say."""
        return bool(self.options.get("orientation", True))


Model: TypeAlias = str | ModelVersion  # `name`, `name/3` or `name@alias`, or a version itself


def parse_model(model: Model) -> ModelRef:
    """The reference that a user means; InvalidInput, with the valid forms, for anything else."""
    return ModelRef.parse(model.ref if isinstance(model, ModelVersion) else model)
