"""The ledger: jobs, models, versions, aliases, workers."""

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
    )
    _partial_index("ix_jobs_queued", ["queue", "priority", "id"], "state = 'queued'")
    _partial_index("ix_jobs_running", ["lease_until"], "state = 'running'")
    _partial_index("ix_jobs_deadline", ["deadline_at"], "state = 'queued' AND deadline_at IS NOT NULL")
    _partial_index("ix_jobs_parent", ["parent_id"], "parent_id IS NOT NULL")
    _partial_index("ux_jobs_idempotency", ["idempotency_key"], "idempotency_key IS NOT NULL", unique=True)
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
        sa.PrimaryKeyConstraint("name", "version"),
        sa.ForeignKeyConstraint(["name"], ["models.name"], ondelete="CASCADE"),
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
        "workers",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("host", sa.String(200), nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("queues", sa.Text, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("heartbeat_at", sa.Double, nullable=False),
    )


def _partial_index(name: str, columns: list[str], where: str, unique: bool = False) -> None:
    only = sa.text(where)
    op.create_index(name, "jobs", columns, unique=unique, sqlite_where=only, postgresql_where=only)
