"""What travels between processes: payloads, messages, and the Celery app that carries them."""
