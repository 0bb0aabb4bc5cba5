"""The few jobs that ended badly, for the dashboard's lists of them."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"


def upgrade() -> None:
    badly = sa.text("state IN ('failed', 'canceled', 'expired')")
    op.create_index("ix_jobs_ended_badly", "jobs", ["state", "id"], sqlite_where=badly, postgresql_where=badly)
