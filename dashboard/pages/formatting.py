"""Numbers and times for people, each with its unit; templates call it `fmt`."""

from __future__ import annotations

from datetime import UTC, datetime

from forebay.contract.queues import format_bytes as format_bytes

UNKNOWN = "–"
MAX_ITEMS = 20


def count(number: int | None, limit: int | None = None) -> str:
    """12,345; a count that stopped at `limit` is 10,000+."""
    if number is None:
        return UNKNOWN
    return f"{limit:,}+" if limit is not None and number >= limit else f"{number:,}"


def jobs(number: int | None) -> str:
    """1 job, 2 jobs."""
    return f"{count(number)} {'job' if number == 1 else 'jobs'}"


def duration(seconds: float | None) -> str:
    """0.4 ms, 12 ms, 3.4 s, 2 min 5 s, 3 h 4 min, 2 d 3 h."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.00095 or seconds == 0 else f"{seconds * 1000:.1g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    for unit, size, small, part, limit in (("min", 60, "s", 1, 3600), ("h", 3600, "min", 60, 86_400)):
        if (whole := round(seconds / part)) * part < limit:
            return _two_units(whole, size // part, unit, small)
    return _two_units(round(seconds / 3600), 24, "d", "h")


def _two_units(whole: int, per_unit: int, unit: str, small: str) -> str:
    big, rest = divmod(whole, per_unit)
    return f"{big} {unit} {rest} {small}" if rest else f"{big} {unit}"


def age(seconds: float | None) -> str:
    """How long ago something was, in whole units: 0 s, 28 s, 4 min 5 s."""
    if seconds is None:
        return UNKNOWN
    return duration(round(max(0.0, seconds))).replace(".0 s", " s").replace("0 ms", "0 s")


def estimate(seconds: float) -> str:
    """A rough duration: 40 s, 12 min, 3.5 h, 4 d."""
    for unit, size, until in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172_800)):
        if seconds < until:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds / 86_400:,.0f} d"


def value(item: object) -> str:
    """A metric or a parameter: a float rounded, the first items of a list, anything else as it is."""
    if isinstance(item, float):
        return number(item)
    if isinstance(item, list | tuple):
        more = f" and {len(item) - MAX_ITEMS:,} more" if len(item) > MAX_ITEMS else ""
        return ", ".join(value(each) for each in item[:MAX_ITEMS]) + more
    return UNKNOWN if item is None else str(item)


def number(value: float) -> str:
    """0.123457, 12,346, 12.4 M: six significant digits, and of millions three with a letter."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if size * 0.9995 <= abs(value) < 1e15:
            return f"{value / size:.3g} {letter}" if abs(value) < size * 999.5 else f"{value / size:,.0f} {letter}"
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e6 else f"{value:.6g}"


def rate(per_second: float | None, unit: str = "jobs") -> str:
    """Jobs, or another unit, per second, or per minute, hour or day where that reads better."""
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
    """12.3 %; less than a tenth of a percent but not zero is < 0.1 %."""
    if not whole:
        return UNKNOWN
    share = 100 * part / whole
    return "< 0.1 %" if 0 < share < 0.1 else f"{share:.1f} %"


def timestamp(when: datetime | None) -> str:
    """2026-11-22 19:02:11 UTC."""
    return UNKNOWN if when is None else when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(when: datetime) -> str:
    """The same for machines, to the millisecond."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds")


def short_id(id: str) -> str:
    """The first and last digits of a job id."""
    return f"{id[:8]}…{id[26:]}"
