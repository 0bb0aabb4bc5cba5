"""The child's side of a training job: start a trainer, follow it, and keep what it makes. Never imports torch."""
