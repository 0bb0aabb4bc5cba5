"""An index of the shards that hold rows with errors, and evaluations and nodes among the kinds that are few."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0009"


def upgrade() -> None:
    _create("ix_shards_failed", "shards", ["batch_id", "rows_failed"], "rows_failed > 0")
    op.drop_index("ix_jobs_kind", "jobs")
    _create("ix_jobs_kind", "jobs", ["kind", "id"], "kind IN ('batch', 'evaluate', 'node', 'train')")


def _create(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
