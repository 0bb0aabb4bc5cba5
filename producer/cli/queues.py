"""`forebay queues`: what waits and runs, and who serves it."""

from __future__ import annotations

from forebay.producer.cli.commands import command, root
from forebay.producer.cli.models.registry import resources_text
from forebay.producer.cli.options import Connect
from forebay.producer.cli.output import duration, print_json, print_table


@command(root, "forebay queues", "forebay queues --json | jq '.[] | {name, depth}'")
def queues(connect: Connect, as_json: bool) -> None:
    """Show every queue: jobs waiting, how many may wait, jobs running, workers, capacity."""
    found = connect().queues()
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
