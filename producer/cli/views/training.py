"""How training runs, trained versions and evaluations are shown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from forebay.contract.errors import JobNotFound
from forebay.contract.job import JobInfo, JobState
from forebay.contract.model import ModelVersion
from forebay.contract.queues import format_bytes
from forebay.contract.requests.recipes import parameters
from forebay.producer.cli.output import (
    age,
    json_data,
    pairs_text,
    print_fields,
    print_line,
    print_note,
    print_table,
)
from forebay.producer.cli.views.benchmarks import print_benchmark
from forebay.producer.handles.job import Job
from forebay.producer.handles.kinds import BenchmarkJob, EvaluationJob, TrainingJob
from forebay.storage.models.derived import derived_facts
from forebay.storage.training.records import Checkpoint, Evaluation, Run

MOST_CLASSES = 30  # of a confusion matrix that is printed


def print_metrics(rows: Sequence[Mapping[str, Any]], *, as_csv: bool) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if as_csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(json_data(row) for row in rows)
        print_line(text.getvalue().rstrip("\n"))
    elif not rows:
        print_note("nothing has been measured yet")
    else:
        shown = [name for name in columns if name != "at"]
        table = [[_short(row.get(name)) for name in shown] for row in rows]
        print_table([name.upper() for name in shown], table, right=[n.upper() for n in shown if n != "split"])


def run_fields(run: Run) -> dict[str, Any]:
    request, data = run.request, run.data
    fields: dict[str, Any] = {
        "recipe": run.recipe,
        "data": _data(request),
        "target": request.get("target"),
        "parameters": params_text(run.recipe, request.get("params") or {}),
        "seed": request.get("seed"),
    }
    if data is not None:
        fields |= {
            "rows": _split_rows(data.rows),
            "left out": f"{data.dropped:,} rows with missing values" if data.dropped else None,
            "too long": f"{data.longer:,} examples of too many tokens were left out" if data.longer else None,
            "leaked": f"{data.leaked:,} held-out rows are also in the training split" if data.leaked else None,
            "classes": several(data.classes),
            "features": several(data.features),
            "data hash": data.sha256,
        }
    return fields | {
        "resumed": f"{run.resumed} times, from a checkpoint" if run.resumed else None,
        "metrics": metrics_text(run.metrics),
        "alias": run.verdict if run.request.get("alias") else None,
    }


def params_text(recipe: Any, params: Mapping[str, Any]) -> str | None:
    """The epochs, and the parameters that differ from their defaults, as they are given on the command line."""
    defaults = {name: param.default for name, param in parameters(str(recipe)).items()}
    shown = {
        name: value
        for name, value in params.items()
        if name == "epochs" or name not in defaults or _plain_list(value) != _plain_list(defaults[name])
    }
    return pairs_text({k: ",".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in shown.items()})


def metrics_text(values: Mapping[str, float | None] | None) -> str | None:
    return ", ".join(f"{name} {_short(value)}" for name, value in (values or {}).items()) or None


def training_as_json(job: Job, info: JobInfo) -> dict[str, Any]:
    """What a training job that has begun, or an evaluation that has succeeded, has beside its row."""
    if isinstance(job, TrainingJob):
        run = _run(job)
        return {"run": json_data(run), "checkpoints": json_data(job.checkpoints)} if run else {}
    if isinstance(job, EvaluationJob) and info.state is JobState.SUCCEEDED:
        return {"evaluation": json_data(job.result(0))}
    return {}


def print_training(job: Job, info: JobInfo) -> None:
    """The same for people."""
    if isinstance(job, TrainingJob) and (run := _run(job)) is not None:
        print_line("")
        print_fields(({"made": f"{run.model}/{run.version}"} if run.version else {}) | run_fields(run))
        _print_checkpoints(job.checkpoints)
    elif isinstance(job, EvaluationJob) and info.state is JobState.SUCCEEDED:
        print_line("")
        print_evaluation(job.result(0))
    elif isinstance(job, BenchmarkJob) and info.state is JobState.SUCCEEDED:
        print_line("")
        print_benchmark(job.result(0))


def print_evaluation(evaluation: Evaluation) -> None:
    print_fields(
        {
            "model": f"{evaluation.model}/{evaluation.version}",
            "data": evaluation.dataset,
            "data hash": evaluation.sha256,
            "rows": f"{evaluation.rows:,}" + (f", {evaluation.failed:,} others failed" if evaluation.failed else ""),
            "metrics": metrics_text(evaluation.metrics),
            "latency": f"{evaluation.ms_per_row:.3g} ms per row, in batches",
            "warning": evaluation.warning or None,
        }
    )
    print_confusion(evaluation.classes, evaluation.confusion)


def print_confusion(classes: Sequence[str] | None, confusion: Sequence[Sequence[int]] | None) -> None:
    """Rows by true class, one per line, and by predicted class; nothing when there are too many classes to read."""
    if not confusion or len(confusion) > MOST_CLASSES:
        return
    names = list(classes or map(str, range(len(confusion))))
    titles = [f"={name}" for name in names]
    print_line("")
    print_table(["TRUE", *titles], [[n, *row] for n, row in zip(names, confusion, strict=True)], right=titles)


def version_fields(model: ModelVersion) -> dict[str, Any]:
    """A version's metadata; of a trained one its lineage and its metrics, and of one made of another how far they are apart."""
    lineage = model.metadata.get("lineage")
    if derived := derived_facts(lineage):
        kept = {name: value for name, value in model.metadata.items() if name not in ("metrics", "lineage")}
        metrics = model.metadata.get("metrics")
        return {"metadata": pairs_text(kept), "metrics": metrics_text(metrics), **derived}
    if not isinstance(lineage, Mapping) or not {"recipe", "job", "files", "rows"} <= set(lineage):
        return {"metadata": pairs_text(model.metadata)}
    return {
        "metadata": pairs_text(
            {k: v for k, v in model.metadata.items() if k not in ("metrics", "lineage", "importance")}
        ),
        "metrics": metrics_text(model.metadata.get("metrics")),
        "importance": _importance(model.metadata.get("importance")),
        "recipe": lineage["recipe"],
        "parameters": params_text(lineage["recipe"], lineage.get("params") or {}),
        "trained on": several(lineage["files"], 3),
        "data hash": lineage.get("sha256"),
        "rows": _split_rows(lineage["rows"]),
        "seed": lineage.get("seed"),
        "code": lineage.get("code"),
        "compared with": lineage.get("parent"),
        "trained by": lineage["job"],
    }


def _importance(found: Any) -> str | None:
    """The columns that count most: by how much the metric gets worse without what they say."""
    if not isinstance(found, Mapping):
        return None if found is None else str(found)
    return several([f"{name} {_short(v) if isinstance(v, int | float) else v}" for name, v in found.items()], 8)


def print_evaluations(evaluations: Sequence[Evaluation]) -> None:
    if not evaluations:
        return
    print_line("")
    rows = [
        (e.id, e.dataset, f"{e.rows:,}", metrics_text(e.metrics), _short(e.ms_per_row), age(e.at)) for e in evaluations
    ]
    print_table(("EVALUATION", "DATA", "ROWS", "METRICS", "MS/ROW", "AGE"), rows, right=("ROWS", "MS/ROW", "AGE"))
    for warning in dict.fromkeys(e.warning for e in evaluations if e.warning):
        print_line(f"warning: {warning}")


def _run(job: TrainingJob) -> Run | None:
    try:
        return job.run
    except JobNotFound:  # it has not begun
        return None


def _print_checkpoints(checkpoints: Sequence[Checkpoint]) -> None:
    if not checkpoints:
        return
    print_line("")
    rows = [(c.step, c.epoch, c.attempt, format_bytes(c.bytes), age(c.at)) for c in checkpoints]
    titles = ("CHECKPOINT", "EPOCH", "ATTEMPT", "SIZE", "AGE")
    print_table(titles, rows, right=titles)


def _data(request: Mapping[str, Any]) -> str | None:
    files = request.get("files") or {}
    first, others = files.get("first"), files.get("count", 1) - 1
    return f"{first} and {others} more files" if first and others else first


def _plain_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _split_rows(rows: Mapping[str, int]) -> str | None:
    return ", ".join(f"{count:,} {split}" for split, count in rows.items()) or None


def several(names: Sequence[Any], most: int = 12) -> str | None:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more if names else None


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:,.0f}" if 1e5 <= abs(value) < 1e15 else f"{value:.5g}"
