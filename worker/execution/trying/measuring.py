"""How long batches of a version take, and what memory they need: measured by running them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import cycle, islice
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from forebay.contract.errors import ForebayError
from forebay.contract.requests.versions.benchmark import Point
from forebay.contract.signature import Row
from forebay.contract.values import stack_key
from forebay.worker.execution.model_cache import LoadedModel, used_bytes

REPEATS = 5  # measurements of a batch size, of which the median counts
LEAST_S = 0.05  # that one takes: of shorter passes as many as fill it, for a clock and a scheduler are not exact
WARM_UPS = 2
RESET_PEAK, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
FREE_SHARE = 0.7  # of the memory that is free, for the batch to come


class Rows:
    """Rows as the model's batches take them, any number of them: they come again and again. Only rows that stack are kept."""

    def __init__(self, loaded: LoadedModel, rows: Sequence[Row]) -> None:
        ready = loaded.preprocess(list(rows))
        key, _ = Counter(map(stack_key, ready)).most_common(1)[0]
        self._rows = [row for row in ready if stack_key(row) == key]

    def take(self, count: int) -> list[Row]:
        return list(islice(cycle(self._rows), count))

    def cost(self, loaded: LoadedModel) -> int:
        """What the most expensive of them costs in a batch, in tokens; 0 where the model does not tell."""
        cost = getattr(loaded.model, "cost", None)
        return 0 if cost is None else max(map(cost, self._rows))


def measure(
    model: Any, rows: Sequence[Row], check: Callable[[], None] = lambda: None, left_s: Callable[[], float] = lambda: inf
) -> Point:
    """The median over several measurements of one batch of these rows, warmed up; fewer where there is no time left for more.
    `check` is called between two of them, and may raise to stop.
    """
    warm_s, seconds = inf, list[float]()
    for _ in range(WARM_UPS):
        check()
        warm_s = _run(model, rows, 1)
        if warm_s > left_s():
            break
    passes = max(1, int(LEAST_S / max(warm_s, 1e-6)))
    while not seconds or (len(seconds) < REPEATS and left_s() > passes * seconds[-1]):
        check()
        seconds.append(_run(model, rows, passes))
    middle = median(seconds)
    return Point(len(rows), 1000 * middle, 1000 * max(seconds), len(rows) / middle)


def _run(model: Any, rows: Sequence[Row], passes: int) -> float:
    """Seconds for one pass, on the average of so many."""
    started = time.perf_counter()
    for _ in range(passes):
        made = model.predict(rows)
    seconds = (time.perf_counter() - started) / passes
    if len(made) != len(rows):
        raise ForebayError(f"the model gave {len(made)} rows for {len(rows)}; it must give one for each")
    for error in made:
        if isinstance(error, Exception):
            raise error
    return seconds


class PeakMemory:
    """How much more memory than before a batch has taken at most, on a device."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._cuda = device.startswith("cuda")
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):  # Linux only
                RESET_PEAK.write_text("5")
        self._before = used_bytes(device)

    def grown(self) -> int:
        """Bytes; 0 where the system does not tell."""
        if self._cuda:
            import torch

            return int(torch.cuda.max_memory_allocated(self._device)) - self._before
        with suppress(OSError):
            lines = STATUS.read_text().splitlines()
            peak = next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)
            return max(0, peak - self._before)
        return 0


def has_room_for(size: int, device: str) -> bool:
    """Whether so many more bytes leave some of the device's free memory for others."""
    if not device.startswith("cuda"):
        return size <= FREE_SHARE * psutil.virtual_memory().available
    import torch

    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return size <= FREE_SHARE * (free - torch.cuda.memory_allocated(device))
