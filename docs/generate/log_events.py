"""The page of log events: what is declared of each, and the calls that log it, as they stand in the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docs.generate.events import EVENTS
from docs.generate.text import linked, listed

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("contract", "datasets", "export", "storage", "producer", "worker", "dashboard", "api", "src/forebay")
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
HEAD = """
# Log events

Every event that Forebay logs, for whoever reads its logs. A line is `timestamp=… level=… event=… key=value …`.
[Logs](../how-to/troubleshoot.md#logs) says where the lines are. Fields are those that an event may have. A line of the
level error that has a traceback has it as `exception`.
"""


@dataclass(frozen=True, slots=True)
class Logged:
    """One call that logs an event."""

    event: str
    levels: frozenset[str]
    fields: tuple[str, ...]
    source: str


def log_events() -> str:
    """The page of log events."""
    calls = list(logged())
    sections = [_section(name, [call for call in calls if call.event == name]) for name in sorted(EVENTS)]
    return "\n\n".join([HEAD.strip(), *sections])


def logged() -> Iterator[Logged]:
    """Every call in the source that logs an event."""
    for part in PARTS:
        for path in sorted(ROOT.joinpath(part).rglob("*.py")):
            if path.is_relative_to(path.resolve().parent):  # src/forebay links the other parts
                text = path.read_text(encoding="utf-8")
                if "get_logger" in text:
                    yield from _calls(ast.parse(text), path.relative_to(ROOT).as_posix())


def _calls(tree: ast.Module, source: str) -> Iterator[Logged]:
    writers = {  # write = log.debug if … else log.info
        target.id: levels
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and (levels := _levels(node.value))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    returned = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value is not None]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        levels = writers.get(node.func.id, set()) if isinstance(node.func, ast.Name) else _levels(node.func)
        if levels:
            fields = tuple(word.arg for word in node.keywords if word.arg not in (None, "exc_info"))
            first = node.args[0]
            # A name stands for what the functions of the module return.
            events = [first] if isinstance(first, ast.Constant) else returned
            names = {text for each in events for text in _texts(each)}
            yield from (Logged(name, frozenset(levels), fields, source) for name in sorted(names))


def _levels(node: ast.expr) -> set[str]:
    """The levels of what this expression is, if it is one of a logger's methods, or a choice of them."""
    if isinstance(node, ast.IfExp):
        return _levels(node.body) | _levels(node.orelse)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "log":
        return {LEVELS[node.attr]}
    return set()


def _texts(node: ast.expr) -> set[str]:
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def _section(name: str, calls: list[Logged]) -> str:
    event = EVENTS[name]
    levels = [level for level in dict.fromkeys(LEVELS.values()) if any(level in call.levels for call in calls)]
    fields = dict.fromkeys(field for call in calls for field in call.fields)
    lines = [f"## {name}", "", linked(event.meaning), "", f"- Level: {', '.join(levels)}"]
    lines += [f"- Fields: {listed(fields)}"] if fields else []
    lines += [f"- Do: {linked(event.remedy)}"] if event.remedy else []
    lines += [f"- Source: {listed(sorted({call.source for call in calls}))}"]
    return "\n".join(lines)
