"""Figures and times as people read them, each with its unit. Used by the templates; knows no job and no ledger."""

from __future__ import annotations

from datetime import UTC, datetime

from forebay.contract.queues import format_bytes

__all__ = [
    "UNKNOWN",
    "about",
    "age",
    "count",
    "duration",
    "figure",
    "format_bytes",
    "iso",
    "jobs",
    "moment",
    "percent",
    "rate",
]

UNKNOWN = "–"
MOST_ITEMS = 20


def count(number: int | None, limit: int | None = None) -> str:
    """12,345; one that was counted up to `limit` only and reached it is 10,000+."""
    if number is None:
        return UNKNOWN
    return f"{limit:,}+" if limit is not None and number >= limit else f"{number:,}"


def duration(seconds: float | None) -> str:
    """0.4 ms, 12 ms, 3.4 s, 2 min 5 s, 3 h 4 min, 2 d 3 h."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.00095 or seconds == 0 else f"{seconds * 1000:.1g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    for unit, size, small, part in (("min", 60, "s", 1), ("h", 3600, "min", 60), ("d", 86400, "h", 3600)):
        whole = round(seconds / part)
        if whole * part < {"min": 3600, "h": 86400}.get(unit, float("inf")):
            big, rest = divmod(whole, size // part)
            return f"{big} {unit} {rest} {small}" if rest else f"{big} {unit}"
    return UNKNOWN


def age(seconds: float | None) -> str:
    """How long ago something was, in whole units: 0 s, 28 s, 4 min 5 s."""
    return (
        UNKNOWN if seconds is None else duration(round(max(0.0, seconds))).replace(".0 s", " s").replace("0 ms", "0 s")
    )


def figure(value: object) -> str:
    """A metric or a parameter: a number to six significant digits, the first of a list, anything else as it is written."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        more = f" and {len(value) - MOST_ITEMS:,} more" if len(value) > MOST_ITEMS else ""
        return ", ".join(figure(item) for item in value[:MOST_ITEMS]) + more
    return UNKNOWN if value is None else str(value)


def about(seconds: float) -> str:
    """An estimate, no more exact than it is: 40 s, 12 min, 3.5 h, 4 d."""
    for unit, size, until in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172_800)):
        if seconds < until:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds / 86_400:,.0f} d"


def jobs(number: int | None) -> str:
    """1 job, 2 jobs."""
    return f"{count(number)} {'job' if number == 1 else 'jobs'}"


def rate(per_second: float | None, unit: str = "jobs") -> str:
    """Jobs, or what the unit says, per second, or per minute or hour where that reads better."""
    if per_second is None:
        return UNKNOWN
    if per_second == 0:
        return f"0 {unit}/s"
    for size, time in ((1, "s"), (60, "min"), (3600, "h")):
        if per_second * size >= 0.95:
            amount = per_second * size
            return f"{amount:,.0f} {unit}/{time}" if amount >= 9.95 else f"{amount:.1f} {unit}/{time}"
    return f"{per_second * 86400:.1f} {unit}/d"


def percent(part: float, whole: float) -> str:
    """12.3 %, with a sign for what is less than a tenth of a percent but not nothing."""
    if not whole:
        return UNKNOWN
    share = 100 * part / whole
    return "< 0.1 %" if 0 < share < 0.1 else f"{share:.1f} %"


def moment(when: datetime | None) -> str:
    """2026-11-22 19:02:11 UTC."""
    return UNKNOWN if when is None else when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(when: datetime) -> str:
    """The same for a machine, to the millisecond."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds")
