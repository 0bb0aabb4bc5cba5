"""Sending jobs: a Celery message for each JobMessage. The only place from which jobs enter Redis.

The producer, the sweeper and a worker that shuts down all send through here. The caller has committed the jobs before, and
decides what becomes of those that could not be sent.

The messages are those that Celery would make, written here: it takes a dozen times as long for each.
"""

from __future__ import annotations

import os
import socket
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

import msgspec
import redis
from celery import Celery
from redis.backoff import NoBackoff
from redis.retry import Retry

from forebay.contract.errors import BrokerUnavailable
from forebay.contract.references import versioned
from forebay.contract.setting_kinds import mask_password
from forebay.contract.wire.celery_app import SENDING_OPTIONS
from forebay.contract.wire.held_connection import HeldConnection
from forebay.contract.wire.messages import (
    PREDICT_TASK,
    JobMessage,
    RoutedJob,
    TaskArgs,
    job_messages,
    redis_key,
)

UNREACHABLE = (OSError, redis.RedisError)
AT_ONCE = 256  # messages: about 1 MB

_NO_MORE = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_encode = msgspec.json.encode


class Dispatcher:
    """Sends jobs to their queues. Thread-safe."""

    def __init__(self, app: Celery) -> None:
        self._address = str(app.conf.broker_url)
        # A connection of our own: Celery's are shared by all apps of a process, and whoever closes them closes them for all.
        self._redis = HeldConnection(
            redis.Redis.from_url(self._address, **SENDING_OPTIONS, retry=Retry(NoBackoff(), 0))
        )
        self._origin = f"{os.getpid()}@{socket.gethostname()}"

    def close(self) -> None:
        self._redis.close()

    def send_jobs(self, jobs: Iterable[RoutedJob]) -> None:
        """Send jobs, as many in one message as may share one; raises as `send` does."""
        self.send(list(job_messages(jobs)))

    def send(self, messages: Sequence[JobMessage]) -> None:
        """Send all of them; BrokerUnavailable unless every one is known to have arrived. Sending twice is harmless."""
        by_key: dict[str, list[bytes]] = {}
        for message in messages:
            by_key.setdefault(redis_key(message.queue, message.priority), []).append(self._encoded(message))
        try:
            for key, encoded in by_key.items():
                for start in range(0, len(encoded), AT_ONCE):
                    self._redis.call("LPUSH", key, *encoded[start : start + AT_ONCE])
        except UNREACHABLE as error:
            raise BrokerUnavailable(f"cannot send to the queue at {mask_password(self._address)}: {error}") from error

    def _encoded(self, message: JobMessage) -> bytes:
        """The message as kombu keeps it in Redis: version 2 of Celery's protocol."""
        id, args = str(uuid4()), message.args
        headers: dict[str, Any] = {
            "lang": "py", "task": PREDICT_TASK, "id": id, "root_id": id, "parent_id": None, "group": None, "retries": 0,
            "argsrepr": f"{versioned(args.model, args.version)}, {len(args.ids)} jobs", "kwargsrepr": "",
            "ignore_result": True, "origin": self._origin,
        }  # fmt: skip
        properties: dict[str, Any] = {
            "correlation_id": id, "reply_to": "", "delivery_mode": 2, "priority": message.priority, "delivery_tag": id,
            "delivery_info": {"exchange": "", "routing_key": message.queue}, "body_encoding": "base64",
        }  # fmt: skip
        envelope = {
            "body": b64encode(_body(args)).decode(), "content-encoding": "utf-8", "content-type": "application/json",
            "headers": headers, "properties": properties,
        }  # fmt: skip
        return _encode(envelope)


def _body(args: TaskArgs) -> bytes:
    return _encode([args, {}, _NO_MORE])
