"""Run by Alembic: brings the connection it is handed by storage.ledger.migrate to the newest tables."""

from alembic import context

from forebay.storage.ledger.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=False)
context.run_migrations()
