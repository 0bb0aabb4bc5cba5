"""`python -m bench.profile`: a flame graph of client, worker and child during predictions, by py-spy where that is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import Counter
from html import escape
from pathlib import Path
from typing import Annotated

import typer

from bench import workloads
from bench.contenders import Forebay
from bench.processor import processes
from bench.stack import temporary_folder

# Of the system's calls that wait py-spy takes some for work.
WAITS = (
    "wait",
    "select",
    "poll",
    "_recv",
    "_tell_waits",
    "lines",
    "SweepLoop._run",
    "_read_from_socket",
    "_worker",
    "sleep",
    "main",
)
STARTS = ("importlib", "process_initializer", "_start_child")
WIDTH, ROW, LEAST = 1200, 17, 1.5  # pixels; what is narrower than the least is left out
COLORS = {"client": "#8fbcd4", "worker": "#e8b36a", "child": "#9ccc8f"}


def profile(
    out: Annotated[Path, typer.Argument(help="The .svg file to write.")],
    workload: Annotated[
        str, typer.Option(help="W4: one after the other; W1: 2,000 together; W1s: by themselves.")
    ] = "W4",
    seconds: Annotated[int, typer.Option(min=5, max=300, help="How long to look.")] = 20,
) -> None:
    """Draw where the time of predictions goes, process by process."""
    spy = shutil.which("py-spy")
    if spy is None:
        raise SystemExit("py-spy is not installed: pip install py-spy")
    model, rows = workloads.model_of(workload), workloads.rows(workload, None)
    with temporary_folder() as folder:
        forebay = Forebay(folder, {model})
        try:
            forebay.run_all("W1", rows[:64])
            roles = {role: process.pid for role, process in processes(forebay.pids) if role in COLORS}
            options = ["-r", "200", "-d", str(seconds), "-f", "raw"]
            spies = [
                subprocess.Popen(
                    [spy, "record", *options, "-o", folder / role, "-p", str(pid)],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                for role, pid in roles.items()
            ]
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                if workload == "W4":
                    forebay.run_one(workload, rows[0])
                else:
                    forebay.run_all(workload, rows)
            for each in spies:
                each.wait(60)
            stacks = {role: _stacks(folder / role) for role in roles}
        finally:
            forebay.stop()
    out.write_text(_drawn(stacks), encoding="utf-8")


def _stacks(path: Path) -> Counter[tuple[str, ...]]:
    """How often each stack was seen at work, from the outermost function to the innermost."""
    found: Counter[tuple[str, ...]] = Counter()
    for line in path.read_text(encoding="utf-8").splitlines():
        frames, _, count = line.rpartition(" ")
        names = [frame.rpartition(":")[0] + ")" if frame.endswith(")") else frame for frame in frames.split(";")]
        if not any(word in name for name in names for word in STARTS) and not names[-1].split(" ")[0].endswith(WAITS):
            found[tuple(names)] += int(count)
    return found


def _drawn(stacks: dict[str, Counter[tuple[str, ...]]]) -> str:
    """The flame graph: each role as wide as the others together have samples for, callers above what they call."""
    total = sum(sum(found.values()) for found in stacks.values())
    boxes: list[str] = []
    deepest = 0

    def draw(at: float, depth: int, name: str, below: Counter[tuple[str, ...]], color: str) -> None:
        nonlocal deepest
        deepest = max(deepest, depth)
        count = sum(below.values())
        width = WIDTH * count / total
        text = escape(name[: int(width / 6.5)]) if width > 30 else ""
        place = f'y="{depth * ROW}" width="{width:.1f}" height="{ROW - 1}"'
        boxes.append(
            f"<g><title>{escape(name)}: {100 * count / total:.1f} %</title>"
            f'<rect x="{at:.1f}" {place} fill="{color}"/><text x="{at + 2:.1f}" y="{depth * ROW + 12}">{text}</text></g>'
        )
        called: dict[str, Counter[tuple[str, ...]]] = {}
        for stack, seen in below.items():
            if stack:
                called.setdefault(stack[0], Counter())[stack[1:]] += seen
        for inner, deeper in sorted(called.items()):
            if WIDTH * sum(deeper.values()) / total >= LEAST:
                draw(at, depth + 1, inner, deeper, color)
            at += WIDTH * sum(deeper.values()) / total

    at = 0.0
    for role, found in stacks.items():
        draw(at, 0, role, found, COLORS[role])
        at += WIDTH * sum(found.values()) / total
    style = "text{font:11px monospace;fill:#222}rect{stroke:#fff;stroke-width:.5}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {(deepest + 1) * ROW}"><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(boxes)}</svg>\n'
    )


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    typer.run(profile)
