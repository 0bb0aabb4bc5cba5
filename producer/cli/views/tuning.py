"""How a tune and its trials are shown."""

from __future__ import annotations

from typing import Any

from forebay.contract.errors import ForebayError
from forebay.contract.job import JobState
from forebay.producer.cli.output import duration, json_data, pairs_text, print_fields, print_line, print_table
from forebay.producer.handles.job import Job
from forebay.producer.handles.kinds import TuningJob
from forebay.storage.tuning.records import Trial, counts_text


def tuning_as_json(job: Job) -> dict[str, Any]:
    """What a tune has beside its row."""
    if not isinstance(job, TuningJob):
        return {}
    best = job.best
    return {"trials": json_data(job.trials), "best": None if best is None else best.number}


def print_tuning(job: Job) -> None:
    """The same for people: what was asked, and a line for each trial."""
    if not isinstance(job, TuningJob):
        return
    trials, best = job.trials, job.best
    print_line("")
    print_fields(_request_fields(job) | {"trials": counts_text(trials) or "none yet", "best": _best(best)})
    if trials:
        print_line("")
        print_table(("TRIAL", "STATE", "VALUE", "STEPS", "TOOK", "PARAMETERS", "JOB", "ERROR"), list(map(_row, trials)),
                    right=("TRIAL", "VALUE", "STEPS", "TOOK"))  # fmt: skip


def params_text(trial: Trial) -> str:
    """The parameters that were searched, as they are given on the command line."""
    values = {name: _text(value) for name, value in trial.params.items()}
    return pairs_text(values) or ""


def _request_fields(job: TuningJob) -> dict[str, Any]:
    try:
        request = job.request
    except ForebayError as error:  # its blob is gone
        return {"request": f"cannot be read: {error}"}
    return {
        "recipe": request.train.recipe,
        "judged by": request.train.metric,
        "sampler": request.sampler + (f", pruned by {request.pruner}" if request.pruner else ""),
    }


def _best(best: Trial | None) -> str | None:
    return None if best is None else f"trial {best.number}, {best.value:.6g}: {params_text(best)}"


def _row(trial: Trial) -> tuple[Any, ...]:
    value = "" if trial.value is None else f"{trial.value:.6g}"
    steps = f"{trial.steps:,}" + (f" of {trial.planned:,}" if trial.planned else "")
    error = trial.error.line if trial.error and trial.state == JobState.FAILED else ""
    return trial.number, trial.state, value, steps, duration(trial.seconds) or "", params_text(trial), trial.job, error


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else value
