"""Every metric, how a worker counts it, and Prometheus' text format."""
