"""Waiting for jobs, with progress."""
