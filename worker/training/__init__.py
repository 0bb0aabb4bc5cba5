"""Training: the process that fits a model to data, and what scores one. Knows neither ledger nor queue."""
