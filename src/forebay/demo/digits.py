"""The demo's first part: train a small network on handwritten digits, register it, and classify 360 held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from forebay.contract.errors import InvalidInput
from forebay.demo.jobs import compare, run_jobs
from forebay.producer.client import Client

HELD_OUT = 360
EPOCHS = 60


def classify_digits(client: Client, console: Console, folder: Path) -> bool:
    """Prints what happens; True when every job succeeded with the result of a direct forward pass."""
    console.rule("1. handwritten digits")
    train_x, test_x, train_y, test_y = _data()
    net = train(train_x, train_y)
    model = client.models.register("digits", export(net, folder / "digits.pt2"), max_batch_size=256)
    client.models.set_alias("digits", "champion", model.version)
    console.print(
        f"registered {model.ref} as digits@champion: takes {_fields(model.signature.inputs)}", highlight=False
    )
    refused = _wrong_input_is_refused(client, console)

    run = run_jobs(client, console, "digits@champion", test_x, "digits")
    if run is None:
        return False
    logits, table = run  # logits: (360, 10)
    with torch.inference_mode():
        direct = net(torch.from_numpy(test_x)).numpy()
    table.add_row("accuracy", f"{(logits.argmax(1) == test_y).mean():.1%}")
    equal = compare(logits, direct, table)
    console.print(table)
    return equal and refused


def train(x: NDArray[np.float32], y: NDArray[np.int64]) -> torch.nn.Module:
    """A network of two layers, trained here by full-batch Adam; a training job would be `client.train`."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(inputs), labels).backward()  # type: ignore[no-untyped-call] # torch
        optimizer.step()
    return net.eval()


def export(net: torch.nn.Module, path: Path) -> Path:
    """The network as a .pt2 archive with a free batch dimension."""
    program = torch.export.export(net, (torch.zeros(2, 64),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)
    return path


def _wrong_input_is_refused(client: Client, console: Console) -> bool:
    try:
        client.predict("digits@champion", np.zeros((8, 8), np.float32))
    except InvalidInput as error:
        console.print(f"an image of the wrong shape is refused: [dim]{error}[/]", highlight=False)
        return True
    console.print("[red]an image of the wrong shape was accepted[/]")
    return False


def _data() -> tuple[Any, ...]:
    digits = load_digits()
    x = (digits.data / 16.0).astype(np.float32)  # (1797, 64), grey values from 0 to 1
    split: list[Any] = train_test_split(x, digits.target.astype(np.int64), test_size=HELD_OUT, random_state=0)
    return tuple(split)


def _fields(fields: tuple[Any, ...] | None) -> str:
    return ", ".join(f"{f.name}: {f}" for f in fields or ()) or "anything"
