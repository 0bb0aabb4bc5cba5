"""The ledger: jobs and their past attempts, models, batches, training runs, evaluations, benchmarks, workers."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("queue", sa.String(32), nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("attempt", sa.SmallInteger, nullable=False),
        sa.Column("uncounted", sa.SmallInteger, nullable=False),
        sa.Column("max_attempts", sa.SmallInteger, nullable=False),
        sa.Column("worker", sa.String(200)),
        sa.Column("lease_until", sa.Double),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("sent_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("deadline_at", sa.Double),
        sa.Column("progress_done", sa.Integer, nullable=False),
        sa.Column("progress_total", sa.Integer, nullable=False),
        sa.Column("progress_message", sa.Text, nullable=False),
        sa.Column("error_type", sa.String(200)),
        sa.Column("error_message", sa.Text),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("parent_id", sa.String(32)),
        sa.Column("client", sa.String(64)),
        sa.Column("idempotency_key", sa.String(200)),
        sa.Column("request_hash", sa.String(64)),
        sa.Column("input_ref", sa.String(80)),
        sa.Column("result_ref", sa.String(80)),
        sa.Column("input", sa.LargeBinary),
        sa.Column("result", sa.LargeBinary),
        sa.Column("crashes", sa.SmallInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("cancel_requested_at", sa.Double),
        sa.Column("not_before", sa.Double),
        sa.Column("submitted_by", sa.String(100)),
    )
    _index("ix_jobs_cancel", "jobs", ["worker"], "state = 'running' AND cancel_requested_at IS NOT NULL")
    _index("ix_jobs_deadline", "jobs", ["deadline_at"], "state = 'queued' AND deadline_at IS NOT NULL")
    _index("ix_jobs_ended_badly", "jobs", ["state", "id"], "state IN ('failed', 'canceled', 'expired')")
    _index("ix_jobs_finished", "jobs", ["finished_at", "state", "model", "version", "queue"], "finished_at IS NOT NULL")
    _index("ix_jobs_kind", "jobs", ["kind", "id"], "kind NOT IN ('predict', 'shard')")
    _index("ix_jobs_live_parents", "jobs", ["state"], "kind IN ('batch', 'tune') AND state IN ('queued', 'running')")
    _index("ix_jobs_metadata", "jobs", ["id"], "metadata <> '{}'")
    _index("ix_jobs_model", "jobs", ["model", "id", "version"])
    _index("ix_jobs_not_before", "jobs", ["not_before"], "state = 'queued' AND not_before IS NOT NULL")
    _index(
        "ix_jobs_open_shards",
        "jobs",
        ["parent_id", "state"],
        "parent_id IS NOT NULL AND state IN ('queued', 'running')",
    )
    _index("ix_jobs_parent", "jobs", ["parent_id", "id", "state"], "parent_id IS NOT NULL")
    _index("ix_jobs_queued", "jobs", ["queue", "priority", "id", "created_at"], "state = 'queued'")
    _index("ix_jobs_running", "jobs", ["lease_until"], "state = 'running'")
    _index("ix_jobs_input_ref", "jobs", ["input_ref"], "input_ref IS NOT NULL")
    _index("ix_jobs_result_ref", "jobs", ["result_ref"], "result_ref IS NOT NULL")
    _index("ux_jobs_idempotency", "jobs", ["idempotency_key"], "idempotency_key IS NOT NULL", unique=True)
    op.create_table(
        "job_attempts",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("attempt", sa.SmallInteger, nullable=False),
        sa.Column("ended", sa.String(16), nullable=False),
        sa.Column("worker", sa.String(200)),
        sa.Column("started_at", sa.Double),
        sa.Column("ended_at", sa.Double, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "attempt", "ended"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
    )
    op.create_table(
        "models",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("last_version", sa.Integer, nullable=False),
    )
    op.create_table(
        "model_versions",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("runtime", sa.String(64), nullable=False),
        sa.Column("artifact", sa.String(80), nullable=False),
        sa.Column("artifact_form", sa.String(16), nullable=False),
        sa.Column("artifact_bytes", sa.Double, nullable=False),
        sa.Column("inputs", sa.Text),
        sa.Column("outputs", sa.Text),
        sa.Column("max_batch_size", sa.Integer, nullable=False),
        sa.Column("batch_wait_timeout_s", sa.Double, nullable=False),
        sa.Column("resources", sa.Text, nullable=False),
        sa.Column("options", sa.Text, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("max_batch_tokens", sa.Integer),
        sa.Column("dtype", sa.String(16)),
        sa.Column("compile", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("timeout_s", sa.Double),
        sa.Column("example", sa.LargeBinary),
        sa.PrimaryKeyConstraint("name", "version"),
        sa.ForeignKeyConstraint(["name"], ["models.name"], ondelete="CASCADE"),
    )
    op.create_table(
        "batch_ceilings",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("device", sa.String(100), nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("tried_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", "version", "device"),
        sa.ForeignKeyConstraint(
            ["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"
        ),
    )
    op.create_table(
        "model_aliases",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("alias", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("name", "alias"),
        sa.ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"]),
    )
    op.create_table(
        "batches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("output", sa.Text, nullable=False),
        sa.Column("files", sa.Integer, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("next_file", sa.Integer, nullable=False),
        sa.Column("next_first", sa.BigInteger, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("planned", sa.Boolean, nullable=False),
        sa.Column("part_schema", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    )
    op.create_table(
        "shards",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("batch_id", sa.String(32), nullable=False),
        sa.Column("pieces", sa.Text, nullable=False),
        sa.Column("planned", sa.Text),
        sa.Column("part", sa.String(100), nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("rows_done", sa.BigInteger, nullable=False),
        sa.Column("rows_failed", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    )
    _index("ix_shards_batch", "shards", ["batch_id", "part"])
    _index("ix_shards_failed", "shards", ["batch_id", "rows_failed"], "rows_failed > 0")
    op.create_table(
        "trials",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tune_id", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("params", sa.Text, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("pruned", sa.Integer),
        sa.Column("artifact", sa.String(80)),
        sa.Column("made", sa.Text),
        sa.ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    )
    _index("ux_trials_number", "trials", ["tune_id", "number"], unique=True)
    _index("ix_trials_artifact", "trials", ["artifact"], "artifact IS NOT NULL")
    op.create_table(
        "training_runs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("recipe", sa.String(200), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("resumed", sa.Integer, nullable=False),
        sa.Column("steps", sa.Integer),
        sa.Column("data", sa.Text),
        sa.Column("version", sa.Integer),
        sa.Column("metrics", sa.Text),
        sa.Column("confusion", sa.Text),
        sa.Column("promoted", sa.Boolean),
        sa.Column("verdict", sa.Text),
        sa.ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    )
    _index("ix_training_runs_model", "training_runs", ["model", "id"])
    op.create_table(
        "job_metrics",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("split", sa.String(16), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("measured", sa.Text, nullable=False),
        sa.Column("rows_per_s", sa.Double),
        sa.PrimaryKeyConstraint("job_id", "split", "step"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("attempt", sa.SmallInteger, nullable=False),
        sa.Column("blob", sa.String(80), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "step"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
    )
    op.create_table(
        "evaluations",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("confusion", sa.Text),
        sa.Column("classes", sa.Text),
        sa.Column("ms_per_row", sa.Double, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("warning", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"
        ),
    )
    _index("ix_evaluations_version", "evaluations", ["model", "version", "id"])
    op.create_table(
        "benchmarks",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("found", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"
        ),
    )
    _index("ix_benchmarks_version", "benchmarks", ["model", "version", "id"])
    op.create_table(
        "drift_references",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("reference", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", "version"),
        sa.ForeignKeyConstraint(
            ["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"
        ),
    )
    op.create_table(
        "drift_counts",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("hour", sa.Integer, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("counts", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", "version", "hour"),
        sa.ForeignKeyConstraint(
            ["name", "version"], ["drift_references.name", "drift_references.version"], ondelete="CASCADE"
        ),
    )
    _index("ix_drift_counts_hour", "drift_counts", ["hour"])
    op.create_table(
        "standing_trainings",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("threshold", sa.Double, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("about", sa.Text, nullable=False),
        sa.Column("problem", sa.Text, nullable=False),
    )
    op.create_table(
        "drift_triggers",
        sa.Column("standing_id", sa.String(32), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("standing_id", "version", "revision"),
        sa.ForeignKeyConstraint(["standing_id"], ["standing_trainings.id"], ondelete="CASCADE"),
    )
    op.create_table(
        "unused_blobs",
        sa.Column("folder", sa.String(16), nullable=False),
        sa.Column("path", sa.String(100), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("since", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("folder", "path"),
    )
    op.create_table(
        "api_keys",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("revoked_at", sa.Double),
    )
    op.create_table(
        "files",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("blob", sa.String(80), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
    )
    _index("ix_files_owner", "files", ["owner", "id"])
    _index("ix_files_blob", "files", ["blob"])
    _index("ix_files_expires", "files", ["expires_at"], "expires_at IS NOT NULL")
    op.create_table(
        "request_batches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("request_hash", sa.String(64), nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("input_blob", sa.String(80), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("holder", sa.String(32), nullable=False),
        sa.Column("lease_until", sa.Double, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("about", sa.Text, nullable=False),
    )
    _index("ix_request_batches_owner", "request_batches", ["owner", "id"])
    _index("ix_request_batches_hash", "request_batches", ["request_hash", "created_at"])
    _index("ux_request_batches_key", "request_batches", ["idempotency_key"], "idempotency_key IS NOT NULL", unique=True)
    open_ = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
    _index("ix_request_batches_open", "request_batches", ["id"], open_)
    op.create_table(
        "last_commit", sa.Column("id", sa.Integer, primary_key=True), sa.Column("mark", sa.String(64), nullable=False)
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("host", sa.String(200), nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("queues", sa.Text, nullable=False),
        sa.Column("runtimes", sa.Text, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("heartbeat_at", sa.Double, nullable=False),
        sa.Column("stats", sa.Text, nullable=False, server_default="{}"),
    )


def _index(name: str, table: str, columns: list[str], where: str | None = None, unique: bool = False) -> None:
    only = None if where is None else sa.text(where)
    op.create_index(name, table, columns, unique=unique, sqlite_where=only, postgresql_where=only)
