"""The ledger's tables of jobs, and of the batches and shards among them. What stands behind the payloads is NULL or 0 in nearly
every job: SQLite knows that from a row's head, without reading through the payloads.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData()


def partial_index(name: str, where: str, *columns: str, unique: bool = False) -> Index:
    """An index of only the rows that meet `where`: the others cost it nothing."""
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


jobs = Table(
    "jobs", metadata,
    Column("id", String(32), primary_key=True, comment="32 hexadecimal digits, in the order of submission"),
    Column("kind", String(16), nullable=False, comment="what it asks for: predict, batch, shard, train, …"),
    Column("state", String(16), nullable=False, comment="queued, running, succeeded, failed, canceled or expired"),
    Column("model", String(100), nullable=False, comment="the model's name; empty for a job without one"),
    Column("version", Integer, nullable=False, comment="the version that it runs"),
    Column("queue", String(32), nullable=False, comment="the queue that it waits in"),
    Column("priority", SmallInteger, nullable=False, comment="from 0, which comes first, to 9"),
    Column("attempt", SmallInteger, nullable=False, comment="the last attempt's number; it only grows: it fences writes"),
    Column("uncounted", SmallInteger, nullable=False, comment="attempts that do not count: released unrun, or before a retry"),
    Column("max_attempts", SmallInteger, nullable=False, comment="how many attempts it may have"),
    Column("worker", String(200), comment="the worker that runs it, or ran it last"),
    Column("lease_until", Double, comment="until when the worker's claim holds"),
    Column("created_at", Double, nullable=False, comment="when it was submitted"),
    Column("sent_at", Double, nullable=False, comment="when its id was last sent to Redis"),
    Column("started_at", Double, comment="when its last attempt started"),
    Column("finished_at", Double, comment="when it reached its final state"),
    Column("deadline_at", Double, comment="if it has not started by then, it expires"),
    Column("progress_done", Integer, nullable=False, comment="how much is done, in the unit of its kind (rows, steps, …)"),
    Column("progress_total", Integer, nullable=False, comment="how much there is to do; 0 when unknown"),
    Column("progress_message", Text, nullable=False, comment="how it goes, in words"),
    Column("error_type", String(200), comment="why it failed: the error's name"),
    Column("error_message", Text, comment="why it failed, in words"),
    Column("metadata", Text, nullable=False, comment="what the user noted with it, as JSON"),
    Column("parent_id", String(32), comment="the batch, tune or training job that it is part of"),
    Column("client", String(64), comment="the client whose Redis channel hears of its end"),
    Column("idempotency_key", String(200), comment="the client's key; a second submission with it makes no second job"),
    Column("request_hash", String(64), comment="hash of the request, to tell a repeat of the key from its misuse"),
    Column("input_ref", String(80), comment="where the payload lies in the blob store, when it is large"),
    Column("result_ref", String(80), comment="where the result lies in the blob store, when it is large"),
    Column("input", LargeBinary, comment="the payload, when it is small"),
    Column("result", LargeBinary, comment="the result, when it is small"),
    Column("crashes", SmallInteger, nullable=False, server_default=text("0"),
        comment="processes that died with it; it then runs alone"),
    Column("cancel_requested_at", Double, comment="when a user asked the running job to stop"),
    Column("not_before", Double, comment="a queued job waits for this time, and has no message until then"),
    Column("submitted_by", String(100), comment="over HTTP: the dialect, and the API key's name"),
    # What waits, by queue: the sweeper's and `forebay queues`' view. With `created_at` PostgreSQL tells the age of a backlog
    # without a look at its rows.
    partial_index("ix_jobs_queued", "state = 'queued'", "queue", "priority", "id", "created_at"),
    partial_index("ix_jobs_running", "state = 'running'", "lease_until"),
    partial_index("ix_jobs_deadline", "state = 'queued' AND deadline_at IS NOT NULL", "deadline_at"),
    # What retention looks for: without it every sweep would read the whole table, and hold up all writers meanwhile. With
    # the further columns the dashboard counts what ended in an hour from the index alone.
    partial_index("ix_jobs_finished", "finished_at IS NOT NULL", "finished_at", "state", "model", "version", "queue"),
    # The jobs of a model, newest first, however many others there are.
    Index("ix_jobs_model", "model", "id", "version"),
    # All others are few among millions of predictions, which cost this index nothing.
    partial_index("ix_jobs_kind", "kind NOT IN ('predict', 'shard')", "kind", "id"),
    # What a search by metadata has to look at.
    partial_index("ix_jobs_metadata", "metadata <> '{}'", "id"),
    # The dashboard's lists of them: jobs that end well, nearly all, cost this index nothing.
    partial_index("ix_jobs_ended_badly", "state IN ('failed', 'canceled', 'expired')", "state", "id"),
    # Both are nearly empty: only jobs that wait after a transient error, and running ones that are to stop.
    partial_index("ix_jobs_not_before", "state = 'queued' AND not_before IS NOT NULL", "not_before"),
    partial_index("ix_jobs_cancel", "state = 'running' AND cancel_requested_at IS NOT NULL", "worker"),
    # With the further columns a batch's shards are counted by state without a look at their rows.
    partial_index("ix_jobs_parent", "parent_id IS NOT NULL", "parent_id", "id", "state"),
    # What a batch has under way, and which batches and tunes live: looked at after each shard and with each sweep.
    partial_index("ix_jobs_open_shards", "parent_id IS NOT NULL AND state IN ('queued', 'running')", "parent_id", "state"),
    partial_index("ix_jobs_live_parents", "kind IN ('batch', 'tune') AND state IN ('queued', 'running')", "state"),
    # Who refers to a blob: most jobs have none, and cost these nothing.
    partial_index("ix_jobs_input_ref", "input_ref IS NOT NULL", "input_ref"),
    partial_index("ix_jobs_result_ref", "result_ref IS NOT NULL", "result_ref"),
    partial_index("ux_jobs_idempotency", "idempotency_key IS NOT NULL", "idempotency_key", unique=True),
    comment="Every job, with its state, its input and its result.",
)  # fmt: skip

job_attempts = Table(
    "job_attempts", metadata,
    Column("job_id", String(32), nullable=False, comment="the job"),
    Column("attempt", SmallInteger, nullable=False, comment="the attempt's number, from 1"),
    Column("ended", String(16), nullable=False, comment="lost, released, refused, or the final state that was retried"),
    Column("worker", String(200), comment="the worker that ran it"),
    Column("started_at", Double, comment="when the attempt started"),
    Column("ended_at", Double, nullable=False, comment="when the attempt ended"),
    Column("reason", Text, nullable=False, comment="why it ended, in words"),
    PrimaryKeyConstraint("job_id", "attempt", "ended"),
    ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
    comment="Attempts that did not finish their job, and outcomes that a retry took back. A job that runs once has none.",
)  # fmt: skip

batches = Table(
    "batches", metadata,
    Column("id", String(32), primary_key=True, comment="the batch's job"),
    Column("output", Text, nullable=False, comment="the output folder"),
    Column("files", Integer, nullable=False, comment="number of input files"),
    Column("bytes", BigInteger, nullable=False, comment="size of all input files"),
    Column("next_file", Integer, nullable=False, comment="planning goes on in this input file, counted from 0"),
    Column("next_first", BigInteger, nullable=False, comment="planning goes on from this row of that file"),
    Column("steps", Integer, nullable=False, comment="number of planning steps: of two that plan at once, one is refused"),
    Column("planned", Boolean, nullable=False, comment="whether all shards have been planned"),
    Column("part_schema", LargeBinary, nullable=False, comment="the schema of all output parts, as Arrow writes one"),
    ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    comment="How far the planning of each batch job is; its request and state are in `jobs`.",
)  # fmt: skip

shards = Table(
    "shards", metadata,
    Column("id", String(32), primary_key=True, comment="the shard's job"),
    Column("batch_id", String(32), nullable=False, comment="the batch's job"),
    Column("pieces", Text, nullable=False, comment="the ranges of the input files that it has, as JSON"),
    Column("planned", Text, comment="the ranges as first planned, as JSON; null when split off another shard"),
    Column("part", String(100), nullable=False, comment="name of its output part, in the order of the input"),
    Column("rows", BigInteger, nullable=False, comment="number of its rows, estimated until they have been read"),
    Column("bytes", BigInteger, nullable=False, comment="size of its ranges in the input files"),
    Column("rows_done", BigInteger, nullable=False, comment="rows with a result, in the attempt that runs or has ended"),
    Column("rows_failed", BigInteger, nullable=False, comment="rows without a result, in the same attempt"),
    Column("seconds", Double, nullable=False, comment="how long that attempt has run"),
    Column("outcome", Text, comment="files written and errors counted, as JSON; null until it succeeds"),
    ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    Index("ix_shards_batch", "batch_id", "part"),
    # How many rows of a batch have failed, and which shards know why: most have none, and cost it nothing.
    partial_index("ix_shards_failed", "rows_failed > 0", "batch_id", "rows_failed"),
    comment="The shards of batches: which rows each has, and what came of it. Each shard is a job too.",
)  # fmt: skip

trials = Table(
    "trials", metadata,
    Column("id", String(32), primary_key=True, comment="the trial's job"),
    Column("tune_id", String(32), nullable=False, comment="the tune's job"),
    Column("number", Integer, nullable=False, comment="the trial's number within its tune, from 0"),
    Column("params", Text, nullable=False, comment="the parameters that it tries, as JSON"),
    Column("value", Double, comment="what trials are compared by: its best value, or that at the step of pruning"),
    Column("pruned", Integer, comment="the step at which it was stopped early; null when it was not"),
    Column("artifact", String(80), comment="blob of the trained model; only the best trial so far keeps one"),
    Column("made", Text, comment="the version that it would become, as JSON; only of the best trial so far"),
    ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    Index("ux_trials_number", "tune_id", "number", unique=True),
    partial_index("ix_trials_artifact", "artifact IS NOT NULL", "artifact"),
    comment="The trials of tunes: each is a training job.",
)  # fmt: skip
