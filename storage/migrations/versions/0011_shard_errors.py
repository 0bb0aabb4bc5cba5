"""An index of the shards that hold rows with errors."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0009"


def upgrade() -> None:
    where = sa.text("rows_failed > 0")
    op.create_index(
        "ix_shards_failed", "shards", ["batch_id", "rows_failed"], sqlite_where=where, postgresql_where=where
    )
