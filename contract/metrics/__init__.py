"""Every metric, how it is counted, and Prometheus' text form."""
