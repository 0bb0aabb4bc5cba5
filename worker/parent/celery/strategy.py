"""How the parent reads Celery's messages: the task Strategy of forebay.predict.

Each goes to the feeder, or is refused in a way that Celery survives. Celery calls a Strategy at every (re)connect, for the
handler that each message then goes through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import signals
from celery.exceptions import InvalidTaskError
from celery.utils.imports import symbol_by_name
from celery.worker.request import create_request_cls

from forebay.contract.errors import InvalidInput
from forebay.contract.wire.messages import TaskArgs, parse_args
from forebay.worker.parent.celery.buffer import ReceivedMessage
from forebay.worker.parent.celery.feeder import Feeder

CHECK_CHILDREN_S = 0.5  # Celery may miss the moment a child dies, and would look again after 5 s

# Celery's Request acts on these or trips over odd values of them; the dispatcher sets none.
UNUSED_HEADERS = ("eta", "expires", "shadow", "group", "stamped_headers", "stamps")
NO_LIMIT: tuple[Any, ...] = (None, [], [None, None])


def make_handler(task: Any, app: Any, consumer: Any) -> Callable[..., None]:
    feeder: Feeder = app.forebay_feeder
    events = consumer.event_dispatcher
    request_class = create_request_cls(
        symbol_by_name(task.Request), task, consumer.pool, consumer.hostname, events, app=app
    )
    revoked = consumer.controller.state.revoked

    def handler(message: Any, _body: Any, ack: Any, reject: Any, callbacks: Any, **_: Any) -> None:
        args = _read(message)
        request = request_class(
            message, on_ack=ack, on_reject=reject, app=app, hostname=consumer.hostname, eventer=events, task=task,
            connection_errors=consumer.connection_errors, body=message.body, headers=message.headers, decoded=False,
            utc=app.uses_utc_timezone(),
        )  # fmt: skip
        if (request.expires or request.id in revoked) and request.revoked():
            return
        feeder.put(ReceivedMessage(request, args, _priority(message), message))
        # After a child has its work: the event's trip to Redis then costs the job no time.
        signals.task_received.send(sender=consumer, request=request)
        request.send_event(
            "task-received", name=request.name, args=request.argsrepr, kwargs=request.kwargsrepr, root_id=request.root_id,
            parent_id=request.parent_id, retries=0, eta=None, expires=None,
        )  # fmt: skip
        for callback in callbacks or ():
            callback(request)

    consumer.hub.call_repeatedly(CHECK_CHILDREN_S, consumer.pool.maintain_pool)  # until the next reconnect
    consumer.hub.call_repeatedly(CHECK_CHILDREN_S, app.forebay_probes.loop_turned, consumer.pool)
    feeder.attach(consumer)
    return handler


def _read(message: Any) -> TaskArgs:
    """A message's arguments; InvalidTaskError, which Celery rejects and survives, for a message that is not ours."""
    try:
        set_headers = [name for name in UNUSED_HEADERS if message.headers.get(name)]
        if set_headers or message.headers.get("timelimit") not in NO_LIMIT:
            raise InvalidInput(f"unexpected header {', '.join(set_headers) or 'timelimit'}")
        args, kwargs, embed = message.payload
        if kwargs or any(embed.values()):
            raise InvalidInput("unexpected keyword arguments, callbacks or chords")
        return parse_args(args)
    except (InvalidInput, AttributeError, TypeError, ValueError, KeyError) as error:
        raise InvalidTaskError(f"not a Forebay message: {error}") from error


def _priority(message: Any) -> int:
    priority = message.properties.get("priority")
    return priority if type(priority) is int and 0 <= priority <= 9 else 0
