"""Making the request of a batch, a training or an evaluation job."""
