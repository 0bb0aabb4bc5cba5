"""The models a child process holds on its device, bounded by measured bytes; the least recently used goes first.

A load is: fetch the artifact, build it with its runtime, warm it up, measure it. A failed warm-up is a failed load.
Knows the runtimes by protocol only, and where artifacts come from by `fetch`. Importing this loads no torch.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import structlog

from forebay.contract.errors import BlobCorrupt, BlobMissing, ModelLoadFailed
from forebay.contract.model import ModelVersion
from forebay.contract.references import ModelRef
from forebay.contract.settings import Settings
from forebay.contract.signature import Row
from forebay.datasets.decoding import for_each, read_files
from forebay.storage.blobs.folders import unpack_folder
from forebay.storage.blobs.store import BlobStore, file_digest
from forebay.storage.models.registry import ModelRegistry
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.retrying import retry_while_unavailable
from forebay.worker.execution.warm_up import warm_up
from forebay.worker.runtimes import Model, Runtime, get_runtime
from forebay.worker.shared_page import LOAD, SharedPage, TimeLimitedModel

log = structlog.get_logger()

Fetch = Callable[[ModelVersion], Path | None]
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory: what it is, how to run it, what it takes up, and whether it was warmed up."""

    spec: ModelVersion
    model: Model
    nbytes: int
    warm: bool

    def preprocess(self, rows: list[Row]) -> list[Row]:
        """The rows as the model's batches take them: files in them read, and what its runtime makes of each."""
        hook = getattr(self.model, "preprocess", None)
        if self.takes_files:
            rows = for_each(partial(_read, self.spec), rows)
        return rows if hook is None else [hook(row) for row in rows]

    @property
    def takes_files(self) -> bool:
        """Whether its rows may hold image or audio files."""
        return any(field.media for field in self.spec.signature.inputs or ())

    def nbytes_read(self, rows: Sequence[Row]) -> int:
        """Bytes of the arrays that files in the rows have become, which are more than the files had."""
        if not self.takes_files:
            return 0
        values = (value for row in rows for value in (row.values() if isinstance(row, dict) else [row]))
        return sum(value.nbytes for value in values if isinstance(value, np.ndarray))

    def count_tokens(self, rows: Sequence[Row]) -> int | None:
        """How many tokens the model reads of these rows; None when its runtime does not count them."""
        return getattr(self.model, "count_tokens", lambda _: None)(rows)

    def output(self, made: Any) -> Any:
        """What the model made of a row, as the signature declares it. Raises what it made if that is an exception."""
        if isinstance(made, Exception):
            raise made
        hook = getattr(self.model, "postprocess", None)
        return self.spec.signature.output(made if hook is None else hook(made))


class ModelLoader:
    """Loads versions by name for the handlers of one child; a version with `timeout_s` gets its steps limited."""

    def __init__(self, registry: ModelRegistry, cache: ModelCache, page: SharedPage, settings: Settings) -> None:
        self._registry, self._cache, self._page, self._settings = registry, cache, page, settings
        self._specs: dict[Key, ModelVersion] = {}

    def load(self, name: str, version: int) -> LoadedModel:
        """The loaded version. Waits while the ledger is away; raises what its runtime does."""
        spec = self._spec(ModelRef(name, version))
        base = None if spec.base is None else self._spec(spec.base)
        return self._limited(lambda: self._cache.get(spec, base))

    def load_apart(self, spec: ModelVersion, path: Path | None) -> LoadedModel:
        """A version that is not registered in this form, from its artifact at `path`, or its own; it is not kept."""
        return self._limited(lambda: self._cache.load_apart(spec, path))

    def _limited(self, load: Callable[[], LoadedModel]) -> LoadedModel:
        with self._page.limit(self._settings.load_timeout_s, LOAD):
            loaded = load()
        if loaded.spec.timeout_s is None:
            return loaded
        return replace(loaded, model=TimeLimitedModel(loaded.model, self._page, loaded.spec.timeout_s))

    def artifact(self, ref: ModelRef) -> tuple[ModelVersion, Path | None]:
        """The version as it is registered now, and where its artifact lies, without loading it."""
        spec = self._registered(ref)
        return spec, self._cache.fetch(spec)

    def _spec(self, ref: ModelRef) -> ModelVersion:
        key = (ref.name, ref.version or 0)
        if key not in self._specs:
            self._specs[key] = self._registered(ref)
        return self._specs[key]

    def _registered(self, ref: ModelRef) -> ModelVersion:
        return retry_while_unavailable(partial(self._registry.get, ref), self._settings.outage_timeout_s)


class Artifacts:
    """A folder of artifacts by checksum. Safe for several processes: each file is put in place whole."""

    def __init__(self, blobs: BlobStore, folder: Path) -> None:
        self._blobs = blobs
        self._folder = folder

    def fetch(self, model: ModelVersion) -> Path | None:
        """Where the version's artifact lies: a file, a folder, or None for a runtime that needs none."""
        if model.artifact_form == "none":
            return None
        digest = model.artifact.removeprefix("sha256:")
        try:
            if model.artifact_form == "folder":
                return self._folder_of(model.artifact, digest)
            path = self._folder / digest
            if path.is_file() and file_digest(path) == digest:  # a crash, or its disk, may have damaged it
                return path
            return self._blobs.fetch(model.artifact, path)
        except (BlobCorrupt, BlobMissing) as error:
            raise type(error)(f"the artifact of {model.ref} cannot be read: {error}; register it again") from error

    def _folder_of(self, ref: str, digest: str) -> Path:
        target = self._folder / f"{digest}.d"
        if target.is_dir():
            return target
        archive = self._blobs.fetch(ref, self._folder / f"{digest}.tar")
        try:
            return unpack_folder(archive, target)
        finally:
            archive.unlink(missing_ok=True)


class ModelCache:
    """Loaded models by (name, version), within `budget_bytes`. Any thread may call it; loads happen one at a time."""

    def __init__(
        self,
        budget_bytes: int,
        fetch: Fetch,
        device: str,
        allowed: Sequence[str] = (),
        runtimes: Callable[[str, Sequence[str]], Runtime] = get_runtime,
        metrics: ChildMetrics | None = None,
        example: Callable[[ModelVersion], Row | None] = lambda _: None,
    ) -> None:
        """`example` gives the row that a version was registered with."""
        self.loads = 0
        self.evictions = 0
        self.budget = budget_bytes
        self._metrics = metrics or ChildMetrics()
        self.fetch = fetch
        self.device = device
        self._allowed = tuple(allowed)
        self._runtimes = runtimes
        self.example = example
        self._models: OrderedDict[Key, LoadedModel] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def bytes(self) -> int:
        with self._lock:
            return sum(loaded.nbytes for loaded in self._models.values())

    def get(self, spec: ModelVersion, base: ModelVersion | None = None) -> LoadedModel:
        """The loaded version, now the most recently used; ModelLoadFailed or ModelRefused when it cannot be loaded.

        An adapter runs on its loaded `base`, which is held as long as one of its adapters is.
        """
        with self._lock:
            whole = None if base is None else self.get(base)
            key = (spec.name, spec.version)
            if key in self._models:
                self._models.move_to_end(key)
                return self._models[key]
            # Room is made before the load as well: both at once may be more than the device has.
            self._make_room(spec.artifact_bytes, whole)
            loaded = self._load(spec, whole)
            self._make_room(loaded.nbytes, whole)
            self._models[key] = loaded
            return loaded

    def load_apart(self, spec: ModelVersion, path: Path | None) -> LoadedModel:
        """A version that is not registered in this form, from its artifact at `path`. It is not kept: others make room for it
        as long as it is loaded.
        """  # fmt: skip
        with self._lock:
            self._make_room(spec.artifact_bytes, None)
            return self._load(spec, None, path)

    def held(self) -> tuple[Key, ...]:
        """The versions held, least recently used first."""
        with self._lock:
            return tuple(self._models)

    def sizes(self) -> dict[Key, int]:
        with self._lock:
            return {key: loaded.nbytes for key, loaded in self._models.items()}

    def _make_room(self, needed: int, kept: LoadedModel | None) -> None:
        before = self.evictions
        for key in [key for key, loaded in self._models.items() if loaded is not kept]:
            if self.bytes + needed > self.budget and key in self._models:  # it has not gone with its base
                self._drop(key)
        if self.evictions > before:  # once for all: it takes a second where much else is in memory
            release_memory(self.device)

    def _drop(self, key: Key) -> None:
        dropped = self._models.pop(key)
        for adapter in [k for k, loaded in self._models.items() if loaded.spec.base == ModelRef(*key)]:
            self._drop(adapter)
        self.evictions += 1
        self._metrics.evicted(key)
        log.info(
            "model_evicted", model=dropped.spec.ref, bytes=dropped.nbytes, device=self.device, held_bytes=self.bytes
        )  # fmt: skip

    def _load(self, spec: ModelVersion, whole: LoadedModel | None, path: Path | None = None) -> LoadedModel:
        started, before = time.perf_counter(), used_bytes(self.device)
        try:
            path = self.fetch(spec) if path is None else path
            if whole is None:
                model = self._runtimes(spec.runtime, self._allowed).load(path, self.device, spec)
            else:
                model = _adapted(whole, path, spec)
            example = self.example(spec)
            warm = warm_up(model, spec, None if example is None else _read(spec, example))
        except BaseException:
            self._metrics.loaded((spec.name, spec.version), time.perf_counter() - started, failed=True)
            release_memory(self.device)  # a half-built model must not stay behind
            raise
        size = _measure(model, used_bytes(self.device) - before, spec)
        self.loads += 1
        self._metrics.loaded((spec.name, spec.version), time.perf_counter() - started)
        log.info(
            "model_loaded", model=spec.ref, runtime=spec.runtime, device=self.device, bytes=size, warm=warm,
            seconds=round(time.perf_counter() - started, 3),
        )  # fmt: skip
        if size > self.budget:
            log.warning(
                "model_exceeds_budget", model=spec.ref, bytes=size, budget_bytes=self.budget, device=self.device
            )
        return LoadedModel(spec, model, size, warm)


def _read(spec: ModelVersion, row: Row) -> Row:
    return read_files(spec.signature, row, oriented=spec.oriented)


def _adapted(whole: LoadedModel, path: Path | None, spec: ModelVersion) -> Model:
    adapt = getattr(whole.model, "adapted", None)
    if adapt is None or path is None:
        raise ModelLoadFailed(f"{spec.ref}: its base {whole.spec.ref} takes no adapters, or it has no artifact")
    made: Model = adapt(path, spec)
    return made


def _measure(model: Model, grown: int, spec: ModelVersion) -> int:
    """The model's own count, else by how much memory grew: at least the artifact, for freed memory is used again."""
    own = getattr(model, "nbytes", None)
    return int(own()) if own is not None else max(grown, spec.artifact_bytes)


def used_bytes(device: str) -> int:
    """Bytes in use: torch's on a GPU, this process's resident memory elsewhere."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def release_memory(device: str) -> None:
    """Gives freed memory back to the device and to the operating system."""
    gc.unfreeze()
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own; musl has none
        if trim is not None:
            trim(0)
