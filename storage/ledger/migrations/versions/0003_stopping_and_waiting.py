"""Cancel requests for running jobs, the wait after a transient error, and how often a job's worker has crashed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("crashes", sa.SmallInteger, nullable=False, server_default=sa.text("0")))
    op.add_column("jobs", sa.Column("cancel_requested_at", sa.Double))
    op.add_column("jobs", sa.Column("not_before", sa.Double))
    _partial_index("ix_jobs_not_before", "not_before", "state = 'queued' AND not_before IS NOT NULL")
    _partial_index("ix_jobs_cancel", "worker", "state = 'running' AND cancel_requested_at IS NOT NULL")


def _partial_index(name: str, column: str, where: str) -> None:
    only = sa.text(where)
    op.create_index(name, "jobs", [column], sqlite_where=only, postgresql_where=only)
