"""The page of the database: the tables as SQLAlchemy knows them, with the comments that their source has beside the columns."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType
from typing import Any

from docs.generate.text import listed, sentence

from forebay.storage.ledger import job_tables, tables

HEAD = """
# Database

The tables of the ledger, for whoever looks into it with SQL. Read as you like; let only Forebay write. `forebay db upgrade` makes
and changes the tables. Times are seconds since 1970 in UTC; ids of jobs are 32 hexadecimal digits, in the order of submission.
In PostgreSQL `DOUBLE` is `DOUBLE PRECISION` and `BLOB` is `BYTEA`.
"""

TABLES = {
    "api_keys": "Who may come in over HTTP: `forebay keys`.",
    "batch_ceilings": "How many rows of a version fit into the memory of a kind of device, where it has run out.",
    "batches": "How far the planning of each batch job is; its request and state are in `jobs`.",
    "benchmarks": "What benchmarks of versions have found.",
    "checkpoints": "The saved states of training jobs.",
    "drift_counts": "What versions have served, counted by the hour, to be held against their references.",
    "drift_references": "What each version is held against for drift.",
    "drift_triggers": "The training jobs that drift has set off.",
    "evaluations": "How well versions did on data sets.",
    "files": "Files that were uploaded over HTTP.",
    "job_attempts": "Attempts that a job's row no longer tells of: lost, given back, refused or retried.",
    "job_metrics": "What training jobs measured, step by step.",
    "jobs": "Every job, with its state, its input and its result.",
    "last_commit": "Marks by which a process finds out whether a commit whose answer was lost took place.",
    "model_aliases": "Movable names of versions, such as `champion`.",
    "model_versions": "Every version of every model.",
    "models": "The names of models.",
    "request_batches": "Batches that were submitted over HTTP in OpenAI's form.",
    "shards": "The shards of batches: which rows each has, and what came of it; each is a job, too.",
    "standing_trainings": "Trainings that drift is to set off: `forebay train --when-drift`.",
    "training_runs": "What is known of each training job beside its row in `jobs`.",
    "trials": "The trials of tunes; each is a training job.",
    "unused_blobs": "Blobs that nothing refers to any more, until they are removed.",
    "workers": "The workers, by their last heartbeat.",
}
# Of columns that mean the same in every table, or are in one only, where the source has no comment.
COLUMNS = {
    "about": "The rest of it, as JSON.",
    "alias": "The movable name.",
    "artifact_bytes": "The artifact's size.",
    "at": "When it was written.",
    "attempt": "The number of the attempt, from 1.",
    "blob": "Where it lies in the blob store.",
    "bytes": "The size in bytes.",
    "classes": "The names of the classes, as JSON.",
    "client": "The client that announcements go to.",
    "confusion": "Counts by true and predicted class, as JSON.",
    "created_at": "When it was made.",
    "deadline_at": "A job that has not started by then expires.",
    "device": "The device it computes on.",
    "error_message": "Why it failed, in words.",
    "error_type": "Why it failed: the error's name.",
    "expires_at": "Until when it is valid.",
    "failed": "How many rows failed.",
    "finished_at": "When it reached its final state.",
    "heartbeat_at": "When it last reported.",
    "host": "The machine's name.",
    "idempotency_key": "The client's key; the same key never makes a second job.",
    "input": "The payload, where it is small.",
    "input_ref": "Where the payload lies in the blob store, where it is large.",
    "inputs": "The declared inputs, as JSON.",
    "kind": "What it asks for: predict, batch, train, …",
    "lease_until": "Until when the claim holds.",
    "max_attempts": "How many attempts it may have.",
    "max_batch_size": "Rows in one forward pass, at most.",
    "metadata": "What the user noted, as JSON.",
    "metrics": "What was measured, as JSON.",
    "model": "The model's name.",
    "options": "Of the runtime, as JSON.",
    "outputs": "The declared outputs, as JSON.",
    "parent_id": "The job that it is a part of.",
    "priority": "From 0, which comes first, to 9.",
    "progress_done": "How much is done.",
    "progress_message": "How it goes, in words.",
    "progress_total": "How much there is to do.",
    "queue": "The queue that it is in.",
    "queues": "The queues that it serves.",
    "recipe": "What learns.",
    "request_hash": "By which a repeated request with the same key is known.",
    "resources": "What it needs, as JSON.",
    "result": "The result, where it is small.",
    "result_ref": "Where the result lies in the blob store, where it is large.",
    "revoked_at": "Since when it lets nobody in.",
    "rows": "How many rows.",
    "runtime": "How the artifact is loaded and run.",
    "scopes": "What it lets one do.",
    "sent_at": "When its id was last sent to Redis.",
    "started_at": "When it started.",
    "state": "queued, running, succeeded, failed, canceled or expired.",
    "threshold": "The PSI from which on it is set off.",
    "version": "The version's number.",
    "worker": "The worker that has, or had, it.",
}


def database() -> str:
    """The page of the database."""
    told = comments(tables) | comments(job_tables)
    found = sorted(tables.metadata.tables.values(), key=lambda table: table.name)
    return "\n\n".join([HEAD.strip(), *(_section(table, told) for table in found)])


def comments(module: ModuleType) -> dict[tuple[str, str], str]:
    """What the source says behind each column, by table and column."""
    source = inspect.getsource(module)
    lines, found = source.splitlines(), dict[tuple[str, str], str]()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", "") == "Table"
            and isinstance(node.args[0], ast.Constant)
        ):
            columns = [
                one for one in node.args if isinstance(one, ast.Call) and getattr(one.func, "id", "") == "Column"
            ]
            ends = [one.end_lineno for one in columns]
            for column in columns:
                _, mark, comment = lines[(column.end_lineno or 1) - 1].partition("  # ")
                if mark and ends.count(column.end_lineno) == 1 and isinstance(column.args[0], ast.Constant):
                    found[str(node.args[0].value), str(column.args[0].value)] = comment.strip()
    return found


def _section(table: Any, told: dict[tuple[str, str], str]) -> str:
    lines = [
        f"## {table.name}",
        "",
        TABLES[table.name],
        "",
        "| column | type | null | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for column in table.columns:
        meaning = told.get((table.name, column.name)) or COLUMNS.get(column.name, "")
        key = next(
            (f"[`{key.column.table.name}.{key.column.name}`](#{key.column.table.name})" for key in column.foreign_keys),
            "",
        )
        both = " ".join(filter(None, [sentence(meaning) if meaning else "", f"Refers to {key}." if key else ""]))
        lines.append(
            f"| `{column.name}` | {column.type!s} | {'yes' if column.nullable else 'no'} | {both} |".replace("  ", " ")
        )
    lines += ["", f"- Primary key: {listed(column.name for column in table.primary_key)}"]
    for index in sorted(table.indexes, key=lambda one: one.name):
        lines.append(f"- {'Unique index' if index.unique else 'Index'} `{index.name}`: {_columns(index)}")
    return "\n".join(lines)


def _columns(index: Any) -> str:
    columns = ", ".join(f"`{getattr(one, 'name', None) or one}`" for one in index.expressions)
    where = index.dialect_options["postgresql"].get("where")
    return columns + (f" where `{where}`" if where is not None else "")
