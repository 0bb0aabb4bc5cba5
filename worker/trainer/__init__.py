"""The trainer: the process that fits a model to data. Knows neither ledger nor queue; the only part that loads Lightning."""
