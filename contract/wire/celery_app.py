"""The Celery app of producers and workers: how to reach Redis, what may travel, how a worker behaves. Declares no task.

Options that are not Celery's defaults have their reason beside them; most were found by cutting connections and killing
workers.
"""

from __future__ import annotations

import ssl
from typing import Any

import redis
from celery import Celery
from kombu import Queue
from kombu.utils.url import parse_url
from redis.backoff import NoBackoff
from redis.retry import Retry

from forebay.contract.errors import BrokerUnavailable
from forebay.contract.settings import Settings
from forebay.contract.wire.messages import PRIORITY_SEPARATOR, PRIORITY_STEPS

PING_S = 2.0  # an idle Redis answers within a millisecond

# Everybody must notice a dead connection within seconds: Celery's defaults wait for ever (celery #8030).
# No retry_on_timeout: it silently turns off kombu's pipelined publish.
SEND_TIMEOUT_S = 3  # a submit waits for it when Redis hangs
SOCKET_OPTIONS: dict[str, Any] = {
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
}

TRANSPORT_OPTIONS: dict[str, Any] = SOCKET_OPTIONS | {
    "priority_steps": list(PRIORITY_STEPS),
    "sep": PRIORITY_SEPARATOR,
    "queue_order_strategy": "priority",
}

# A sender does not wait for Redis to come up: the job is in the ledger, and the sweeper sends it.
SENDING_OPTIONS: dict[str, Any] = {
    "socket_timeout": SEND_TIMEOUT_S, "socket_connect_timeout": SEND_TIMEOUT_S, "socket_keepalive": True,
}  # fmt: skip


def make_app(settings: Settings) -> Celery:
    """A Celery app for these settings; BrokerUnavailable when they name no queue."""
    address = broker_url(settings)
    app = Celery("forebay", broker=address, set_as_current=False)
    if address.startswith("rediss:"):  # kombu would take any certificate, and Flower does not look into the address
        app.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED} | parse_url(address).get("ssl", {})
    app.conf.update(
        # JSON only, both ways: nothing that was received is ever unpickled.
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        # Results belong to the ledger.
        task_ignore_result=True,
        result_backend=None,
        broker_transport_options=TRANSPORT_OPTIONS,
        broker_connection_timeout=5,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a worker waits for Redis as long as it takes
        # The default exchange keeps no bindings in Redis, so there are none to lose when Redis is wiped.
        task_queues=[Queue(name, exchange="", routing_key=name) for name in settings.queues],
        task_default_queue=next(iter(settings.queues)),
        task_default_exchange="",
        task_create_missing_queues=False,
        task_acks_late=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_pool_start_method="spawn",  # a forked child of a process that has used torch may hang, or lose CUDA
        worker_prefetch_multiplier=4,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_log_color=False,
        enable_utc=True,
    )
    return app


def broker_url(settings: Settings) -> str:
    """The address of Redis; BrokerUnavailable, saying how to set one, when there is none."""
    if not settings.broker:
        raise BrokerUnavailable(
            f"no queue is running in {settings.home} and none is configured; start the stack with `forebay up`, "
            "or set FOREBAY_BROKER=redis://host:6379/0"
        )
    return settings.broker


def connect_redis(settings: Settings) -> redis.Redis:
    """A Redis client for announcements and queue lengths, which are not Celery's. Connects on first use."""
    return redis.Redis.from_url(broker_url(settings), **SOCKET_OPTIONS)


def ping_redis(settings: Settings, timeout_s: float = PING_S) -> str | None:
    """None when Redis answers, else what it does instead: it hangs (it accepts connections and says nothing), or is away.

    Takes `timeout_s` seconds at most, once to connect and once to wait for the answer.
    """
    limits = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "retry": Retry(NoBackoff(), 0)}
    connection = redis.Redis.from_url(broker_url(settings), **limits)
    try:
        connection.ping()
    except redis.TimeoutError:
        return f"hangs: it has not answered within {timeout_s:g} s"
    except redis.AuthenticationError as error:
        return f"refuses the login: {error}"
    except (redis.RedisError, OSError) as error:
        return f"does not answer: {error}"
    finally:
        connection.close()
    return None
