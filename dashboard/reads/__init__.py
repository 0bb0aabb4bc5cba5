"""How the pages read the ledger."""
