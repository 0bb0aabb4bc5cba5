"""How busy a device is, and how much of its memory is held, while something runs."""

from __future__ import annotations

import statistics
import subprocess
import threading
from contextlib import suppress

import psutil

SAMPLE_S = 0.2


class Gauge:
    """How busy the device is and how much of its memory is held, by all processes; of a CPU the machine's."""

    def __init__(self, device: str) -> None:
        number = device.partition(":")[2] or "0"
        ask = ("--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", f"--id={number}")
        self._command = ["/usr/bin/nvidia-smi", *ask] if device.startswith("cuda") else None
        self._samples: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Gauge:
        psutil.cpu_percent()  # counts from here on
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._sample()  # the first, where it was over soon

    @property
    def busy(self) -> float:
        """From 0 to 1, the mean; NaN where nothing tells."""
        return statistics.fmean(busy for busy, _ in self._samples) if self._samples else float("nan")

    @property
    def most(self) -> float:
        """Bytes."""
        return max((held for _, held in self._samples), default=float("nan"))

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        if self._command is None:
            self._samples.append((psutil.cpu_percent() / 100, float(psutil.virtual_memory().used)))
            return
        with suppress(OSError, ValueError, subprocess.SubprocessError):
            told = subprocess.run(self._command, capture_output=True, text=True, timeout=10, check=True).stdout
            busy, held = told.strip().split(", ")
            self._samples.append((float(busy) / 100, float(held) * 2**20))
