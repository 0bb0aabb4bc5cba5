"""All that touches Celery's internals."""
