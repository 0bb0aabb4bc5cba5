"""What the dashboard keeps of the workers' events is bounded, however many messages go by."""

import gc
import time
from collections.abc import Sized
from typing import Any

from flower.events import EventsState

from forebay.dashboard.flower.options import DEFAULTS

LIMIT = 50
BYTES_EACH = 6000  # a task with its events: 4,300 measured


def tell(state: EventsState, number: int) -> None:
    about: dict[str, Any] = {"hostname": "cpu@a", "uuid": f"task-{number}", "utcoffset": 0, "pid": 1, "root_id": None}
    more = {
        "name": "forebay.predict",
        "args": "('digits', 3)",
        "kwargs": "{}",
        "retries": 0,
        "eta": None,
        "expires": None,
    }
    for kind, extra in (
        ("received", more),
        ("started", {}),
        ("succeeded", {"result": "'1 succeeded'", "runtime": 0.1}),
    ):
        now = time.time()
        state.event(about | extra | {"type": f"task-{kind}", "timestamp": now, "local_received": now, "clock": number})


def test_events_of_many_messages_take_no_more_memory_than_those_of_some() -> None:
    state = EventsState(max_workers_in_memory=5, max_tasks_in_memory=LIMIT)
    for number in range(20 * LIMIT):
        tell(state, number)
    gc.collect()  # tasks and workers refer to each other
    kept = {name: len(value) for name, value in vars(state).items() if isinstance(value, Sized)}
    assert len(state.tasks) == LIMIT
    assert max(kept.values()) <= 4 * LIMIT, kept  # Celery's heap of events holds four times as many
    assert [len(tasks) for tasks in (*state.tasks_by_worker.values(), *state.tasks_by_type.values())] == [LIMIT, LIMIT]


def test_all_of_them_take_a_twentieth_of_the_dashboards_memory() -> None:
    """Flower's own default of 100,000 takes 400 MiB, and grows for hours or days until then."""
    assert int(str(DEFAULTS["max_tasks"])) * BYTES_EACH <= 6 << 20
