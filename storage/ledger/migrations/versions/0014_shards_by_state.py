"""The index of a batch's jobs tells their states too: a batch's progress and squares are read from it."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    where = sa.text("parent_id IS NOT NULL")
    op.drop_index("ix_jobs_parent", "jobs")
    op.create_index("ix_jobs_parent", "jobs", ["parent_id", "id", "state"], sqlite_where=where, postgresql_where=where)
