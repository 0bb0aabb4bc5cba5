"""Sending jobs: a Celery message for each JobMessage, pipelined. The only place from which jobs enter Redis.

The producer, the sweeper and a worker that shuts down all send through here. The caller has committed the jobs before, and
decides what becomes of those that could not be sent.
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
from forebay.contract.setting_kinds import mask_password
from forebay.contract.wire.celery_app import SENDING_OPTIONS
from forebay.contract.wire.messages import PREDICT_TASK, JobMessage, RoutedJob, dump_args, job_messages

UNREACHABLE = (OSError, redis.RedisError, KombuError, KombuOperationalError)
CONNECTIONS = 4


class Dispatcher:
    """Sends jobs to their queues. Thread-safe."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        # Pools of our own: Celery's are shared by all apps of a process, and whoever closes them closes them for all.
        connection = app.connection_for_write(transport_options=SENDING_OPTIONS)
        self._connections = connection.Pool(limit=CONNECTIONS)
        self._producers = ProducerPool(self._connections, limit=CONNECTIONS)

    def close(self) -> None:
        self._connections.force_close_all()

    def send_jobs(self, jobs: Iterable[RoutedJob]) -> None:
        """Send jobs, as many in one message as may share one; raises as `send` does."""
        self.send(list(job_messages(jobs)))

    def send(self, messages: Sequence[JobMessage]) -> None:
        """Send all of them; BrokerUnavailable unless every one is known to have arrived. Sending twice is harmless."""
        if not messages:
            return
        try:
            with self._producers.acquire(block=True, timeout=10) as producer:
                if len(messages) == 1:
                    self._publish(producer, messages[0])
                    return
                with producer.batch(len(messages)):
                    for message in messages:
                        self._publish(producer, message)
        except UNREACHABLE as error:
            address = mask_password(str(self._app.conf.broker_url))
            raise BrokerUnavailable(f"cannot send to the queue at {address}: {error}") from error

    def _publish(self, producer: Any, message: JobMessage) -> None:
        args = message.args
        in_flower = f"{versioned(args.model, args.version)}, {len(args.ids)} jobs"
        task = self._app.amqp.create_task_message(
            uuid(), PREDICT_TASK, dump_args(args), {}, argsrepr=in_flower, kwargsrepr="", ignore_result=True
        )
        producer.publish(
            task.body,
            exchange="",
            routing_key=message.queue,
            priority=message.priority,
            headers=task.headers,
            serializer="json",
            retry=False,
            **task.properties,
        )
