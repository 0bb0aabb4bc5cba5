"""Every metric of Forebay, declared once: its name, help, labels and buckets.

Names follow Prometheus' conventions: the unit is part of the name, and counters end in `_total`. The metrics in `WORKER` are
counted in workers and also have the label `worker`; the dashboard reads those in `LEDGER` from the ledger. The page
docs/reference/metrics.md is made from this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PREFIX = "forebay_"
MODEL = ("model", "version")
JOB = (*MODEL, "kind")
RUN = ("model", "job")
ROUTE = ("dialect", "route")

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
LONG = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
LOADS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TRAINING_OUTCOMES = ("succeeded", "failed", "stopped", "postponed", "released", "lost")
SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `labels` omit `worker`; a histogram's `buckets` are its upper bounds without +Inf."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


WORKER: Mapping[str, Metric] = {
    "jobs_finished_total": Metric(
        "counter", "Jobs that a worker ended: succeeded, failed, or stopped by a cancel or a deadline.", (*JOB, "state")
    ),
    "jobs_postponed_total": Metric("counter", "Jobs that met a transient error and wait for another try.", JOB),
    "results_refused_total": Metric("counter", "Results dropped because the job's lease had lapsed meanwhile."),
    "job_wait_seconds": Metric("histogram", "From submission to the first claim of a job.", JOB, LONG),
    "job_run_seconds": Metric("histogram", "From the claim of a job to its end.", JOB, SECONDS),
    "training_attempts_total": Metric(
        "counter", f"Attempts of training jobs, by what became of them: {', '.join(TRAINING_OUTCOMES)}.", ("model", "outcome")
    ),
    "training_seconds": Metric("histogram", "Duration of an attempt of a training job.", ("model",), LONG),
    "batch_rows": Metric("histogram", "Rows of a forward pass.", MODEL, ROWS),
    "batch_padding_ratio": Metric(
        "histogram", "Share of a batch that is padding, where the model counts its rows' cost.", MODEL, SHARES
    ),
    "batch_tokens_total": Metric("counter", "Cost of the rows that were run (tokens of a text), padding left out.", MODEL),
    "batch_padding_tokens_total": Metric("counter", "Cost of the padding that was run with them.", MODEL),
    "forward_seconds": Metric("histogram", "Duration of a forward pass, or of a request to an endpoint.", MODEL, SECONDS),
    "endpoint_requests_total": Metric(
        "counter",
        "Requests to the server that runs a model: answered, refused (not taken), failed, wrong, or rejected for good.",
        (*MODEL, "outcome"),
    ),
    "prompt_tokens_total": Metric("counter", "Tokens of prompts that a language model has read.", MODEL),
    "completion_tokens_total": Metric("counter", "Tokens that a language model has generated.", MODEL),
    "first_text_seconds": Metric(
        "histogram", "From the start of a batch to each row's first text, where the runtime tells it.", MODEL, SECONDS
    ),
    "out_of_memory_total": Metric("counter", "Batches that did not fit into memory and were halved.", MODEL),
    "model_loads_total": Metric("counter", "Attempts to load a model, by outcome: loaded or failed.", (*MODEL, "outcome")),
    "model_load_seconds": Metric("histogram", "Fetching, building and warming up a model.", MODEL, LOADS),
    "model_evictions_total": Metric("counter", "Models dropped to make room for others.", MODEL),
    "model_bytes": Metric("gauge", "Memory of a loaded model, summed over the worker's children.", MODEL),
    "model_cache_budget_bytes": Metric("gauge", "What loaded models may take up, summed over the worker's children."),
    "device_memory_used_bytes": Metric("gauge", "Memory in use on the worker's device, by everyone."),
    "device_memory_total_bytes": Metric("gauge", "Memory of the worker's device."),
    "device_utilization_ratio": Metric("gauge", "Share of the last second in which a GPU ran a kernel, where NVML tells."),
    "worker_memory_bytes": Metric("gauge", "Resident memory of the worker's processes."),
    "worker_cpu_cores": Metric("gauge", "Cores that the worker's processes used since the heartbeat before."),
    "worker_children": Metric("gauge", "Children that are ready for work."),
    "messages_held": Metric("gauge", "Messages that wait in the worker for a free child."),
    "jobs_in_flight": Metric("gauge", "Jobs that the worker's children hold."),
    "pool_tasks_total": Metric("counter", "Portions of jobs handed to a child, by outcome: done, failed or lost.", ("outcome",)),
    "pool_task_seconds_total": Metric("counter", "Time in which a child was at work on them."),
    "child_deaths_total": Metric("counter", "Children that died with jobs in hand."),
    "sweeper_jobs_total": Metric(
        "counter", "Jobs that a sweep moved: freed, failed, expired, due, resent, deleted.", ("action",)
    ),
    "blobs_removed_total": Metric("counter", "Blobs that nothing referred to any more and that were removed."),
    "blob_bytes_removed_total": Metric("counter", "Their size, in bytes."),
    "housekeeping_failures_total": Metric("counter", "Heartbeats, renewals and sweeps that failed.", ("what",)),
    "broker_outages_total": Metric("counter", "Times the worker lost Redis and found it again."),
}  # fmt: skip

LEDGER: Mapping[str, Metric] = {
    "ledger_up": Metric("gauge", "1 when the ledger answered the dashboard, else 0."),
    "jobs": Metric("gauge", "Jobs in the ledger by state.", ("state",)),
    "queue_jobs": Metric("gauge", "Unfinished jobs by queue and state (queued, running).", ("queue", "state")),
    "queue_backlog_seconds": Metric("gauge", "Age of the oldest job that waits, 0 when none does.", ("queue",)),
    "queue_work_seconds": Metric(
        "gauge", "Estimate of one child's time for the jobs that wait, by what jobs took its workers so far.", ("queue",)
    ),
    "queue_workers": Metric("gauge", "Living workers that serve the queue.", ("queue",)),
    "training_epoch": Metric("gauge", "Epoch that a running training job is in.", RUN),
    "training_loss": Metric("gauge", "Last training loss of a running training job; NaN when it is not finite.", RUN),
    "training_rows_per_second": Metric("gauge", "Pace of a running training job when it last told it.", RUN),
    "training_silence_seconds": Metric("gauge", "Time since a running training job last told of a step, or began.", RUN),
    "model_drift_psi": Metric(
        "gauge", "Largest PSI of a column of what a version served in the last 24 h, beyond chance; 0 when none is.", MODEL
    ),
    "model_drifted_columns": Metric("gauge", "Columns that have drifted in what a version served in the last 24 h.", MODEL),
    "worker_up": Metric("gauge", "1 while the worker's heartbeat is fresh, else 0.", ("worker",)),
    "worker_info": Metric("gauge", "Always 1; the labels say what the worker is.", ("worker", "host", "device", "queues")),
    "worker_start_time_seconds": Metric("gauge", "When the worker first reported, since the epoch.", ("worker",)),
    "worker_heartbeat_age_seconds": Metric("gauge", "Time since the worker's last heartbeat.", ("worker",)),
}  # fmt: skip

API: Mapping[str, Metric] = {
    "http_requests_total": Metric(
        "counter", "Requests that `forebay serve` has answered, by route and class of status (2xx).", (*ROUTE, "status")
    ),
    "http_request_seconds": Metric(
        "histogram", "From a request's head to the end of its answer, waits included.", ROUTE, SECONDS
    ),
    "http_requests_in_flight": Metric("gauge", "Requests that are being answered.", ("dialect",)),
}

METRICS: Mapping[str, Metric] = {**WORKER, **LEDGER, **API}
