"""Indexes for the reports, the past of jobs that were tried more than once, and the workers' statistics."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    _replace("ix_jobs_queued", ["queue", "priority", "id", "created_at"], "state = 'queued'")
    _replace("ix_jobs_finished", ["finished_at", "state", "model", "version", "queue"], "finished_at IS NOT NULL")
    op.create_index("ix_jobs_model", "jobs", ["model", "id", "version"])
    _create("ix_jobs_kind", ["kind", "id"], "kind IN ('batch', 'train')")
    _create("ix_jobs_metadata", ["id"], "metadata <> '{}'")
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
    op.add_column("workers", sa.Column("stats", sa.Text, nullable=False, server_default="{}"))


def _replace(name: str, columns: list[str], where: str) -> None:
    op.drop_index(name, "jobs")
    _create(name, columns, where)


def _create(name: str, columns: list[str], where: str) -> None:
    op.create_index(name, "jobs", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
