"""`forebay jobs retry --failed`: all that failed or expired at once, after a question when it is many."""

from __future__ import annotations

import sys

import typer

from forebay.contract.errors import InvalidInput
from forebay.producer.cli.output import print_json, say, write
from forebay.producer.client import Client

MANY = 1000  # jobs; more are not retried without asking


def retry_failed(client: Client, model: str | None, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Count, ask, retry, and say in one line what was done."""
    count = client.retry_failed(model, dry_run=True)
    if not (dry_run or yes or count <= MANY or _agreed(count)):
        say("nothing was queued")
        raise typer.Exit(1)
    if not dry_run:
        count = client.retry_failed(model)
    if as_json:
        print_json({"jobs": count, "model": model, "dry_run": dry_run})
    else:
        what = f"{count:,} failed or expired job{'' if count == 1 else 's'}" + (f" of {model}" if model else "")
        write(f"would queue {what} afresh" if dry_run else f"queued {what} afresh")


def _agreed(count: int) -> bool:
    if not sys.stdin.isatty():
        raise InvalidInput(f"{count:,} jobs would run again and there is no terminal to ask on; add --yes")
    return typer.confirm(f"Queue {count:,} failed or expired jobs afresh?", err=True)
