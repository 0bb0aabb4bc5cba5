"""Every SQL statement about jobs."""
