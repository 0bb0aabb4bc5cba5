"""What a small language model is tuned on: questions whose answers follow from them, as files."""

import json
from pathlib import Path
from typing import Any

from forebay.contract.requests.batch import InputFile

COLORS = ("red", "green", "blue", "white")


def conversations(lines: int = 200) -> list[dict[str, Any]]:
    """`3 blue?` is to be answered by `blue 3`."""
    asked = [(i % 7, COLORS[i % 4]) for i in range(lines)]
    return [
        {"messages": [
            {"role": "user", "content": f"{number} {color}?"},
            {"role": "assistant", "content": f"{color} {number}"},
        ]}
        for number, color in asked
    ]  # fmt: skip


def write_lines(path: Path, rows: list[dict[str, Any]]) -> tuple[InputFile, ...]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return (InputFile(str(path), path.stat().st_size),)
