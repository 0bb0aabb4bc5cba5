"""What the protocol tells of models: their tensors, their configuration, and what workers have counted of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from forebay.api.inference.tensors import BYTES, DATATYPES
from forebay.contract.job import JobKind
from forebay.contract.metrics.statistics import Statistics
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Field

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "schedule_policy", "statistics")


def platform(model: ModelVersion) -> str:
    """The runtime in the protocol's form, `<project>_<format>`."""
    return f"forebay_{model.runtime.replace('-', '_')}"


def metadata(model: ModelVersion, versions: Sequence[ModelVersion]) -> dict[str, Any]:
    """The tensors of a version, their first dimension the rows of a request; a side that is not declared has none."""
    return {
        "name": model.name,
        "versions": [str(version.version) for version in versions],
        "platform": platform(model),
        "inputs": [_tensor(field) for field in model.signature.inputs or ()],
        "outputs": [_tensor(field) for field in model.signature.outputs or ()],
    }


def config(model: ModelVersion) -> dict[str, Any]:
    """The version as a model configuration of Triton's; shapes are those of one row."""
    return {
        "name": model.name,
        "platform": platform(model),
        "backend": "forebay",
        "version_policy": {"specific": {"versions": [model.version]}},
        "max_batch_size": model.max_batch_size,
        "input": [_configured(field) for field in model.signature.inputs or ()],
        "output": [_configured(field) for field in model.signature.outputs or ()],
        "dynamic_batching": {"max_queue_delay_microseconds": round(model.batch_wait_timeout_s * 1e6)},
    }


def statistics(models: Iterable[ModelVersion], workers: Sequence[Statistics]) -> dict[str, Any]:
    """What workers have counted of each version since they started; a count of 0 stands where nothing is counted."""
    return {"model_stats": [_statistics(model, workers) for model in models]}


def _statistics(model: ModelVersion, workers: Sequence[Statistics]) -> dict[str, Any]:
    labels = (model.name, str(model.version))
    jobs = (*labels, str(JobKind.PREDICT))

    def summed(name: str, series: tuple[str, ...]) -> tuple[int, float]:
        found = [worker.histograms.get(name, {}).get(series) for worker in workers]
        return sum(one.count for one in found if one), sum(one.total for one in found if one)

    def ended(state: str) -> dict[str, int]:
        count = sum(int(worker.total("jobs_finished_total", *jobs, state)) for worker in workers)
        return _duration(count, count * seconds / max(1, ran))

    executions, rows = summed("batch_rows", labels)
    ran, seconds = summed("job_run_seconds", jobs)  # however they ended
    none = _duration(0, 0.0)
    return {
        "name": model.name,
        "version": str(model.version),
        "inference_count": round(rows),
        "execution_count": executions,
        "inference_stats": {
            "success": ended("succeeded"),
            "fail": ended("failed"),
            "queue": _duration(*summed("job_wait_seconds", jobs)),
            "compute_input": none,
            "compute_infer": _duration(*summed("forward_seconds", labels)),
            "compute_output": none,
            "cache_hit": none,
            "cache_miss": none,
        },
        "batch_stats": [],
    }


def _tensor(field: Field) -> dict[str, Any]:
    return {"name": field.name, "datatype": DATATYPES.get(field.dtype, BYTES), "shape": [-1, *field.shape]}


def _configured(field: Field) -> dict[str, Any]:
    datatype = DATATYPES.get(field.dtype, "STRING")
    return {"name": field.name, "data_type": f"TYPE_{datatype}", "dims": list(field.shape)}


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}
