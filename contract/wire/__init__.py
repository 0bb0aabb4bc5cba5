"""What travels: payloads, messages, and the Celery app that carries them."""
