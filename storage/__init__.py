"""The ledger: tables, JobStore, ModelRegistry, blobs, migrations. Knows contract."""
