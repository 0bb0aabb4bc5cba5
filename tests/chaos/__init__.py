"""`make chaos`: jobs, workers and a seeded schedule of faults, then an audit of what became of every job.

It starts all it needs in a folder of its own, breaks it while a client submits, waits until everything has ended, and counts
what was lost, written twice or wrong: by the ledger, by a trigger of its own on the ledger, and by the model's own log.
"""
