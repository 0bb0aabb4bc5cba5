"""The last lines of a process that has died: what is kept of its output, and what of that explains its end."""

from __future__ import annotations

import re
from collections.abc import Sequence

from forebay.contract.setting_kinds import mask_password

MAX_LINES, MAX_LINE, MAX_CHARACTERS = 20, 300, 4000
NEUTRAL_LINES = 5  # of a process that complained of nothing

# Events of our own and of the logging module that are no complaint; bars of progress.
_CHATTER = re.compile(r"\blevel=(debug|info)\b|\b(DEBUG|INFO)\b|\d+%\||\bit/s\b|s/it\b")
_BAD = re.compile(
    r"\blevel=(warning|error|critical)\b|traceback|error|exception|fatal|critical|fail|abort|assert|panic|killed|terminate"
    r"|segmentation|core dumped|out of memory|\boom\b|bad_alloc|cannot|corrupt|refused|usage:",
    re.IGNORECASE,
)


def last_lines(lines: Sequence[str]) -> str:
    """The last lines from the first complaint among them on, without chatter; or those around the place where Python reports
    a fatal error; or, of a process that complained of nothing, the last few. Passwords are masked.
    """  # fmt: skip
    fatal = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    if fatal is not None:
        first = max(0, fatal - 3)
        return _text(lines[first : first + MAX_LINES])[:MAX_CHARACTERS]
    said = [line for line in lines if not _CHATTER.search(line)]
    first = next((i for i, line in enumerate(said) if _BAD.search(line)), max(0, len(said) - NEUTRAL_LINES))
    return _text(said[first:][-MAX_LINES:])[-MAX_CHARACTERS:]


def _text(lines: Sequence[str]) -> str:
    return "\n".join(mask_password(line) for line in lines)
