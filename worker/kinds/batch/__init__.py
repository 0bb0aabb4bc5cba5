"""Batch jobs in a child: starting and planning them, and running their shards. Knows the ledger, data sets and models."""
