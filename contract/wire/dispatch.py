"""Sending job_messages: one Celery message each, pipelined. The only place from which jobs enter Redis.

The producer, the sweeper and a worker that shuts down all send through here. That the jobs are committed already, and what
becomes of job_messages that could not be sent, is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import KombuError
from kombu.exceptions import OperationalError as KombuOperationalError
from kombu.pools import ProducerPool
from kombu.utils.uuid import uuid

from forebay.contract.errors import BrokerUnavailable
from forebay.contract.references import versioned
from forebay.contract.settings import mask_password
from forebay.contract.wire.celery_app import SENDING_OPTIONS
from forebay.contract.wire.messages import PREDICT_TASK, JobMessage, RoutedJob, job_messages

UNREACHABLE = (OSError, redis.RedisError, KombuError, KombuOperationalError)


CONNECTIONS = 4


class Dispatcher:
    """Sends job_messages to their queues. Thread-safe."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        # Pools of our own: Celery's are shared by all apps of a process, and whoever closes them closes them for all.
        connection = app.connection_for_write(transport_options=SENDING_OPTIONS)
        self._connections = connection.Pool(limit=CONNECTIONS)
        self._producers = ProducerPool(self._connections, limit=CONNECTIONS)

    def close(self) -> None:
        """Close every connection."""
        self._connections.force_close_all()

    def send_jobs(self, routed_jobs: Iterable[RoutedJob]) -> None:
        """Merge routed_jobs into job_messages and send those."""
        self.send(list(job_messages(routed_jobs)))

    def send(self, batch: Sequence[JobMessage]) -> None:
        """Send all job_messages; BrokerUnavailable when it is not sure that every one arrived. Sending twice is harmless."""
        if not batch:
            return
        messages = [self._message(job_message) for job_message in batch]
        try:
            with self._producers.acquire(block=True, timeout=10) as producer:
                if len(messages) == 1:
                    _publish(producer, messages[0])
                    return
                with producer.batch(len(messages)):
                    for message in messages:
                        _publish(producer, message)
        except UNREACHABLE as error:
            address = mask_password(str(self._app.conf.broker_url))
            raise BrokerUnavailable(f"cannot send to the queue at {address}: {error}") from error

    def _message(self, job_message: JobMessage) -> tuple[Any, JobMessage]:
        shown = f"{versioned(job_message.model, job_message.version)}, {len(job_message.ids)} jobs"  # what Flower shows
        message = self._app.amqp.create_task_message(
            uuid(), PREDICT_TASK, job_message.args, {}, argsrepr=shown, kwargsrepr="", ignore_result=True
        )
        return message, job_message


def _publish(producer: Any, pair: tuple[Any, JobMessage]) -> None:
    message, job_message = pair
    producer.publish(
        message.body,
        exchange="",
        routing_key=job_message.queue,
        priority=job_message.priority,
        headers=message.headers,
        serializer="json",
        retry=False,
        **message.properties,
    )
