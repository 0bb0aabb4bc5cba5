"""Forebay: asynchronous, queue-based batch inference for teams with a few models and a few GPUs.

The public names are imported when they are first asked for: `import forebay` itself costs nearly nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forebay.contract.errors import (
        BrokerUnavailable,
        ForebayError,
        InvalidInput,
        JobCanceled,
        JobExpired,
        JobFailed,
        JobNotFound,
        LedgerUnavailable,
        ModelNotFound,
        NoQueueFits,
        OutcomeUnknown,
        PayloadTooLarge,
        QueueFull,
        ResultTimeout,
        Transient,
    )
    from forebay.contract.history import JobEvent
    from forebay.contract.job import JobInfo, JobState
    from forebay.contract.model import ModelVersion
    from forebay.contract.requests.manifest import Manifest
    from forebay.contract.requests.versions.benchmark import Benchmark
    from forebay.contract.settings import Settings
    from forebay.producer.async_client import AsyncClient, AsyncJob
    from forebay.producer.client import Client
    from forebay.producer.handles.job import Job
    from forebay.producer.handles.kinds import (
        BatchJob,
        BenchmarkJob,
        EvaluationJob,
        TrainingJob,
        TuningJob,
    )
    from forebay.producer.options import SubmitOptions
    from forebay.producer.waiting.futures import as_completed, wait
    from forebay.storage.training.records import Evaluation

_HOMES = {
    "AsyncClient": "forebay.producer.async_client",
    "AsyncJob": "forebay.producer.async_client",
    "BatchJob": "forebay.producer.handles.kinds",
    "Benchmark": "forebay.contract.requests.versions.benchmark",
    "BenchmarkJob": "forebay.producer.handles.kinds",
    "Client": "forebay.producer.client",
    "Evaluation": "forebay.storage.training.records",
    "EvaluationJob": "forebay.producer.handles.kinds",
    "Job": "forebay.producer.handles.job",
    "JobEvent": "forebay.contract.history",
    "JobInfo": "forebay.contract.job",
    "JobState": "forebay.contract.job",
    "Manifest": "forebay.contract.requests.manifest",
    "ModelVersion": "forebay.contract.model",
    "Settings": "forebay.contract.settings",
    "SubmitOptions": "forebay.producer.options",
    "TrainingJob": "forebay.producer.handles.kinds",
    "TuningJob": "forebay.producer.handles.kinds",
    "as_completed": "forebay.producer.waiting.futures",
    "wait": "forebay.producer.waiting.futures",
}  # all others are errors

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "BatchJob",
    "Benchmark",
    "BenchmarkJob",
    "BrokerUnavailable",
    "Client",
    "Evaluation",
    "EvaluationJob",
    "ForebayError",
    "InvalidInput",
    "Job",
    "JobCanceled",
    "JobEvent",
    "JobExpired",
    "JobFailed",
    "JobInfo",
    "JobNotFound",
    "JobState",
    "LedgerUnavailable",
    "Manifest",
    "ModelNotFound",
    "ModelVersion",
    "NoQueueFits",
    "OutcomeUnknown",
    "PayloadTooLarge",
    "QueueFull",
    "ResultTimeout",
    "Settings",
    "SubmitOptions",
    "TrainingJob",
    "Transient",
    "TuningJob",
    "as_completed",
    "wait",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'forebay' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "forebay.contract.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
