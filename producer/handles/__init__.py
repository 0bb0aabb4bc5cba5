"""The handles that a client gives out on its jobs."""
