"""The clock of a SQLite ledger: the same for all processes of its machine, and nobody sets it.

It counts from the machine's start, as the kernel does. What has to be added for the time of day is read from the clock once
after each start, by the first process that asks, and kept in a file beside the ledger: whatever becomes of the machine's clock
afterwards, times in the ledger go on evenly.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def steady_time() -> float:
    """Seconds since some moment, whatever becomes of this machine's clock; time in which it was suspended counts."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def boot_offset(ledger: str, latest: Callable[[], float]) -> float:
    """What to add to `steady_time` for the time of the ledger in that file.

    `latest` is a time that the ledger knows: a machine that comes up with its clock behind must not hold jobs back.
    """
    boot = BOOT_ID.read_text().strip()
    with open(f"{ledger}-clock", "a+") as file:  # noqa: PTH123
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        for line in file:
            known, _, offset = line.partition(" ")
            if known == boot and line.endswith("\n"):  # else a power cut came between
                return float(offset)
        offset_s = max(time.time(), latest()) - steady_time()
        file.write(f"\n{boot} {offset_s!r}\n")
        return offset_s
