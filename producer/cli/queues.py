"""`forebay queues`: what waits and runs, and who serves it."""

from __future__ import annotations

from forebay.producer.cli.commands import examples
from forebay.producer.cli.models import resources_text
from forebay.producer.cli.options import Home, Json, open_client
from forebay.producer.cli.output import clear_errors, duration, print_json, print_table

EXAMPLES = examples("forebay queues", "forebay queues --json | jq '.[] | {name, depth}'")


@clear_errors()
def queues(home: Home = None, as_json: Json = False) -> None:
    """Show every queue: jobs waiting, how many may wait, jobs running, workers, capacity."""
    with open_client(home) as client:
        found = client.queues()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            q.name, q.depth, q.max_queue_size, duration(q.oldest_age_s), q.running, " ".join(q.workers),
            resources_text(q.capacity),
        )
        for q in found
    ]  # fmt: skip
    titles = ("QUEUE", "WAITING", "AT MOST", "OLDEST", "RUNNING", "WORKERS", "CAPACITY PER WORKER")
    print_table(titles, rows, right=("WAITING", "AT MOST", "OLDEST", "RUNNING"))
