"""Queues and routing: the capacity of a queue's machines, the resources a job needs, and which queue a job goes to.

Queues are declared in forebay.toml. A queue stands for a class of machine, so its capacity is that of one worker, not the sum
over many.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeGuard

from forebay.contract.errors import InvalidInput, NoQueueFits
from forebay.contract.job import JobKind
from forebay.contract.references import shown

_MAX_BYTES = 2**63 - 1  # a 64-bit SQL integer
_UNITS = {"b": 1} | {
    f"{prefix}{tail}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for tail, base in (("b", 1000), ("ib", 1024))
}
_SIZE = re.compile(r"\s*([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([kmgt]?i?b)?\s*", re.IGNORECASE | re.ASCII)
_QUEUE_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


def parse_bytes(value: int | float | str) -> int:
    """A size in bytes, from a whole number or text such as '512', '2GiB', '1.5 GB' (a fraction of a byte is dropped).

    Units are B, decimal KB MB GB TB and binary KiB MiB GiB TiB, in any case. InvalidInput for anything else.
    """
    size = _text_bytes(value) if isinstance(value, str) else value
    if not _is_number(size) or not float(size).is_integer() or not 0 <= size <= _MAX_BYTES:
        raise InvalidInput(
            f"{shown(value)} is not a valid size; write bytes as a whole number, or '512MB', '2GiB', '1.5TiB'"
        )
    return int(size)


def format_bytes(size: int) -> str:
    """`size` bytes in the largest binary unit that fits: 512 B, 1.5 KiB, 24 GiB."""
    amount, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while round(amount, 2) >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{round(amount, 2):g} {units[0]}" if amount < 1024 else f"{round(amount)} {units[0]}"


@dataclass(frozen=True, slots=True)
class Resources:
    """What a model version needs, or what a queue's machines have. `memory` and `gpu_memory` are bytes."""

    cpu: float = 0.0
    memory: int = 0
    gpu: float = 0.0
    gpu_memory: int = 0

    @classmethod
    def parse(cls, mapping: Mapping[str, Any] | None) -> Resources:
        """From JSON or TOML; sizes also as text ('2GiB'). `gpu_memory` without `gpu` asks for one GPU.

        InvalidInput for unknown keys, negative or non-finite amounts, and GPU memory with `gpu` set to 0.
        """
        given = _mapping({} if mapping is None else mapping, "resources", RESOURCE_NAMES)
        gpu_memory = _size(given, "gpu_memory")
        gpu = _amount(given, "gpu", default=1.0 if gpu_memory else 0.0)
        if gpu_memory and not gpu:
            raise InvalidInput("gpu is 0 but gpu_memory is not; leave gpu out or set it to 1")
        return cls(_amount(given, "cpu"), _size(given, "memory"), gpu, gpu_memory)

    def as_dict(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in RESOURCE_NAMES if getattr(self, name)}

    def shortages(self, capacity: Resources, owner: str = "it") -> list[str]:
        """What `capacity` lacks, in words: 'needs 80 GiB gpu_memory, it has 24 GiB'; [] if it suffices.

        `owner` is what the words call whatever has the capacity.
        """
        pairs = ((name, getattr(self, name), getattr(capacity, name)) for name in RESOURCE_NAMES)
        return [_shortage(name, need, has, owner) for name, need, has in pairs if need > has]


RESOURCE_NAMES = ("cpu", "memory", "gpu", "gpu_memory")
# A training job takes hours. Queues for these have workers of their own, so that no prediction waits behind one.
TRAINING = frozenset({JobKind.TRAIN, JobKind.NODE, JobKind.TUNE})
_INFERENCE = frozenset(JobKind) - TRAINING


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A declared queue: its machines' capacity, the kinds of job it accepts, and how many jobs may wait (None: any number).

    A `remote` one is for models that other servers run, and only for these: who waits for an answer keeps no device from others.
    """

    name: str
    capacity: Resources
    kinds: frozenset[JobKind] = frozenset(JobKind)
    max_queue_size: int | None = None
    remote: bool = False

    def __post_init__(self) -> None:
        _check_queue_name(self.name)

    @classmethod
    def parse(cls, name: str, mapping: Mapping[str, Any]) -> QueueSpec:
        """From a table of forebay.toml, with cpu, memory, gpu, gpu_memory, `kinds` (a list), `max_queue_size` and `remote`."""
        given = _mapping(mapping, f"queue {shown(name)}", (*RESOURCE_NAMES, "kinds", "max_queue_size", "remote"))
        capacity = Resources.parse({key: value for key, value in given.items() if key in RESOURCE_NAMES})
        remote = given.get("remote", False)
        if not isinstance(remote, bool) or (remote and capacity.gpu):
            raise InvalidInput(f"remote is true or false, and true only without a gpu; got {shown(remote)}")
        kinds = _kinds(given.get("kinds", sorted(_INFERENCE if remote else JobKind)))
        return cls(name, capacity, kinds, _max_queue_size(given.get("max_queue_size")), remote)

    @property
    def trains(self) -> bool:
        return self.kinds <= TRAINING

    def as_dict(self) -> dict[str, Any]:
        limit = {} if self.max_queue_size is None else {"max_queue_size": self.max_queue_size}
        remote = {"remote": True} if self.remote else {}
        return {**self.capacity.as_dict(), "kinds": sorted(self.kinds), **limit, **remote}


def route(
    queues: Mapping[str, QueueSpec], resources: Resources, kind: JobKind, queue: str | None = None, remote: bool = False
) -> str:
    """The name of the smallest queue that accepts `kind` and has the `resources`; or `queue`, if given, when it does.

    The job of a `remote` model goes to a remote queue, any other to one that is not. Queues are compared by gpu, gpu_memory,
    memory, cpu, then name. InvalidInput when `queue` is not declared; NoQueueFits, saying what is lacking, when no queue fits.
    """
    if queue is not None:
        return _route_to(queues, resources, kind, queue, remote)
    accepting = sorted((spec for spec in queues.values() if kind in spec.kinds and spec.remote == remote), key=_by_size)
    for spec in accepting:
        if not resources.shortages(spec.capacity):
            return spec.name
    if not accepting and remote:
        raise NoQueueFits(f"no remote queue accepts {kind} jobs; declare one with remote = true in forebay.toml")
    if not accepting:
        raise NoQueueFits(f"no queue accepts {kind} jobs; add {kind.value!r} to a queue's kinds in forebay.toml")
    raise _no_fit(resources, accepting[-1], "the largest queue")


def _route_to(queues: Mapping[str, QueueSpec], resources: Resources, kind: JobKind, queue: str, remote: bool) -> str:
    if queue not in queues:
        raise InvalidInput(
            f"there is no queue {shown(queue)}; the declared queues are {', '.join(sorted(queues)) or 'none'}"
        )
    spec = queues[queue]
    if kind not in spec.kinds:
        raise NoQueueFits(
            f"queue {queue!r} accepts no {kind} jobs, only {', '.join(sorted(spec.kinds))}; choose another"
        )
    if spec.remote != remote:
        words = (
            "is only for models that other servers run" if spec.remote else "is not for models that other servers run"
        )
        raise NoQueueFits(f"queue {queue!r} {words} (remote = {str(spec.remote).lower()}); choose another")
    if resources.shortages(spec.capacity):
        raise _no_fit(resources, spec, "queue")
    return spec.name


def _check_queue_name(name: object) -> None:
    if not isinstance(name, str) or _QUEUE_NAME.fullmatch(name) is None:
        raise InvalidInput(
            f"{shown(name)} is not a valid queue name; a name is 1 to 32 of a-z 0-9 -, starting with a letter"
        )


def _by_size(spec: QueueSpec) -> tuple[float, int, int, float, str]:
    has = spec.capacity
    return has.gpu, has.gpu_memory, has.memory, has.cpu, spec.name


def _no_fit(resources: Resources, spec: QueueSpec, owner: str) -> NoQueueFits:
    short = "; ".join(resources.shortages(spec.capacity, f"{owner} {spec.name!r}"))
    return NoQueueFits(f"{short}; add a queue in forebay.toml or lower the resources")


def _shortage(name: str, need: float, has: float, owner: str) -> str:
    if not name.endswith("memory"):
        return f"needs {need:g} {name}, {owner} has {has:g}"
    texts = format_bytes(int(need)), format_bytes(int(has))
    wanted, there = texts if texts[0] != texts[1] else (f"{need} B", f"{has} B")
    return f"needs {wanted} {name}, {owner} has {there}"


def _text_bytes(text: str) -> int | None:
    match = _SIZE.fullmatch(text)
    if match is None or (match[2] and match[2].lower() not in _UNITS):
        return None
    return int(Decimal(match[1]) * _UNITS[(match[2] or "b").lower()])


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mapping(value: Any, what: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{what}: expected a table with {', '.join(known)}, got {shown(value)}")
    unknown = [key for key in value if key not in known]
    if unknown:
        raise InvalidInput(f"{what}: unknown {', '.join(map(shown, unknown))}; there are {', '.join(known)}")
    return value


def _size(given: Mapping[str, Any], name: str) -> int:
    try:
        return parse_bytes(given.get(name, 0))
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from error


def _amount(given: Mapping[str, Any], name: str, default: float = 0.0) -> float:
    value = given.get(name, default)
    if not _is_number(value) or not 0 <= value <= 1e6 or not math.isfinite(value):
        raise InvalidInput(f"{name}: expected a number of at least 0, got {shown(value)}")
    return float(value)


def _kinds(value: object) -> frozenset[JobKind]:
    legal = [kind.value for kind in JobKind]
    if not isinstance(value, (list, tuple, set, frozenset)) or not value or not all(kind in legal for kind in value):
        raise InvalidInput(f"kinds: expected a list of {', '.join(legal)}, got {shown(value)}")
    return frozenset(map(JobKind, value))


def _max_queue_size(value: object) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InvalidInput(
            f"max_queue_size: expected a whole number of jobs from 1, or nothing for no limit; got {shown(value)}"
        )
    return value


# At the end, because building it runs the checks above.
DEFAULT_QUEUES: Mapping[str, QueueSpec] = {
    "cpu": QueueSpec("cpu", Resources(cpu=8.0, memory=32 * 2**30), _INFERENCE),
    "gpu": QueueSpec("gpu", Resources(cpu=8.0, memory=64 * 2**30, gpu=1.0, gpu_memory=24 * 2**30), _INFERENCE),
    "remote": QueueSpec("remote", Resources(cpu=8.0, memory=32 * 2**30), _INFERENCE, remote=True),
    "train": QueueSpec("train", Resources(cpu=8.0, memory=32 * 2**30), TRAINING),
    "train-gpu": QueueSpec(
        "train-gpu", Resources(cpu=8.0, memory=64 * 2**30, gpu=1.0, gpu_memory=24 * 2**30), TRAINING
    ),
}
