"""What a child counts while it works, and sends to its parent with the result of each pool task.

Only differences are sent: when a child dies, no more is lost than what it has counted since. torch is imported only for a CUDA
device, in the process that owns it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

from forebay.contract.metrics.statistics import Statistics

Key = tuple[str, int]
Job = tuple[str, int, str]  # of its model, version and kind


class ChildMetrics:
    """The counts of one child since they were last taken. Thread-safe."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._lock = threading.Lock()
        self._counted = Statistics()

    def waited(self, job: Job, seconds: Sequence[float]) -> None:
        """Jobs were run for the first time, so long after they were submitted."""
        if seconds:
            with self._lock:
                self._counted.observe_all("job_wait_seconds", seconds, *_labels(job))

    def ended(self, job: Job, jobs: Mapping[str, int], seconds: float, *, postponed: int = 0, refused: int = 0) -> None:
        """Jobs ended, by final state, so long after their claim; or were postponed, or refused by the ledger."""
        labels = _labels(job)
        with self._lock:
            for state, count in jobs.items():
                if count:
                    self._counted.count("jobs_finished_total", *labels, state, by=count)
            if ran := sum(jobs.values()):
                self._counted.observe("job_run_seconds", seconds, *labels, times=ran)
            if postponed:
                self._counted.count("jobs_postponed_total", *labels, by=postponed)
            if refused:
                self._counted.count("results_refused_total", by=refused)

    def trained(self, model: str, outcome: str, seconds: float) -> None:
        """An attempt of a training job ended so."""
        with self._lock:
            self._counted.count("training_attempts_total", model, outcome)
            self._counted.observe("training_seconds", seconds, model)
            if outcome == "lost":
                self._counted.count("results_refused_total")

    def ran(self, model: Key, rows: int, seconds: float, tokens: int = 0, padded: int = 0) -> None:
        """A batch went through the model; `padded` is the cost of its rows with their padding."""
        labels = _labels(model)
        with self._lock:
            self._counted.observe("batch_rows", rows, *labels)
            self._counted.observe("forward_seconds", seconds, *labels)
            if padded:
                self._counted.observe("batch_padding_ratio", 1 - tokens / padded, *labels)
                self._counted.count("batch_tokens_total", *labels, by=tokens)
                self._counted.count("batch_padding_tokens_total", *labels, by=padded - tokens)

    def answered(
        self, model: Key, requests: Mapping[str, int], seconds: Sequence[float], prompt: int, completion: int
    ) -> None:
        """Requests to an endpoint ended, by outcome; those with an answer took so long each, and so many tokens."""
        labels = _labels(model)
        with self._lock:
            for outcome, count in requests.items():
                self._counted.count("endpoint_requests_total", *labels, outcome, by=count)
            if seconds:
                self._counted.observe_all("forward_seconds", seconds, *labels)
            for name, tokens in (("prompt_tokens_total", prompt), ("completion_tokens_total", completion)):
                if tokens:
                    self._counted.count(name, *labels, by=tokens)

    def first_texts(self, model: Key, seconds: Sequence[float]) -> None:
        """Rows of a batch gave their first text, so long after it was begun."""
        if seconds:
            with self._lock:
                self._counted.observe_all("first_text_seconds", seconds, *_labels(model))

    def out_of_memory(self, model: Key) -> None:
        with self._lock:
            self._counted.count("out_of_memory_total", *_labels(model))

    def loaded(self, model: Key, seconds: float, *, failed: bool = False) -> None:
        with self._lock:
            self._counted.count("model_loads_total", *_labels(model), "failed" if failed else "loaded")
            self._counted.observe("model_load_seconds", seconds, *_labels(model))

    def evicted(self, model: Key) -> None:
        with self._lock:
            self._counted.count("model_evictions_total", *_labels(model))

    def take(self, models: Mapping[Key, int], budget: int) -> Statistics:
        """What was counted since this was last called, and what the child holds now: models by bytes, its device's memory."""
        with self._lock:
            counted, self._counted = self._counted, Statistics()
        for model, size in models.items():
            counted.set("model_bytes", size, *_labels(model))
        counted.set("model_cache_budget_bytes", budget)
        for name, value in _device(self._device).items():
            counted.set(name, value)
        return counted


def _labels(of: Key | Job) -> tuple[str, ...]:
    return tuple(map(str, of))


def _device(device: str) -> dict[str, float]:
    """Memory of a GPU, and its utilisation where NVML is installed; nothing for a CPU, which the parent measures."""
    if not device.startswith("cuda"):
        return {}
    import torch

    free, total = torch.cuda.mem_get_info(device)
    values = {"device_memory_used_bytes": float(total - free), "device_memory_total_bytes": float(total)}
    with suppress(Exception):  # no NVML, or one that refuses: torch raises what it likes
        values["device_utilization_ratio"] = torch.cuda.utilization(device) / 100
    return values
