"""The last lines of a process that has died: what is kept of its output, and what of that explains its end."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.contract.setting_kinds import mask_password

MAX_LINES, MAX_LINE, MAX_CHARACTERS = 20, 300, 4000


def last_lines(lines: Sequence[str]) -> str:
    """The last lines, or those around the place where Python reports a fatal error; passwords are masked."""
    fatal = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    first = max(0, len(lines) - MAX_LINES if fatal is None else fatal - 3)
    text = "\n".join(mask_password(line) for line in lines[first : first + MAX_LINES])
    return text[-MAX_CHARACTERS:] if fatal is None else text[:MAX_CHARACTERS]
