"""Structured logs: one key=value line per event, in the same form for our events and for the libraries' log records."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from forebay.contract.settings import Settings


def configure_logs(settings: Settings) -> None:
    """Write every log line of this process to stderr as `time level event key=value …`."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # We log a line per batch; Celery's line per message and its start-up banners add nothing.
    for noisy in ("celery", "kombu", "amqp", "billiard", "alembic"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
