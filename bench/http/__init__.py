"""Workload W5: predictions over HTTP, measured by wrk."""
