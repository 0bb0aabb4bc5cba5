"""2,000 digits jobs through Forebay, through plain Celery, and through a bare torch loop, in turn, in one run.

    python bench/main_job.py [--rounds 3] [--jobs 2000] [--json]

Every result of every contender is compared with a direct forward pass. Forebay's jobs are durable rows in its ledger;
plain Celery's live in Redis only. What counts are the ratios; the figures are this machine's, at that minute. With
FOREBAY_BROKER and FOREBAY_DATABASE set, Forebay runs on those instead of the embedded queue and SQLite.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
import workloads
from numpy.typing import NDArray

from forebay import Client, Settings
from forebay.stack import start_detached, stop_stack
from forebay.valkey import Valkey

Contender = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender runs (default 3)")
    parser.add_argument("--jobs", type=int, default=workloads.W1_JOBS, help="jobs in each run (default 2000)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as folder:
        redis = Valkey(Path(folder) / "plain")
        redis.start()
        try:
            rates = measure(Path(folder), redis.url, args.rounds, args.jobs)
        finally:
            redis.stop()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    if args.json:
        print(json.dumps({"jobs": args.jobs, "rounds": args.rounds, "per_second": medians, "all": rates}))
    else:
        report(medians, rates)
    return 0


def measure(folder: Path, redis_url: str, rounds: int, jobs: int) -> dict[str, list[float]]:
    """Rates in jobs/s by contender, one for each round."""
    rows = workloads.rows(jobs)
    os.environ["BENCH_REDIS_URL"] = redis_url
    celery_worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "plain_celery", "worker", "-P", "prefork", "-c", "1"],
        cwd=Path(__file__).parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    home = folder / "home"
    os.environ["FOREBAY_TORCH_THREADS"] = "1"
    stack = start_detached(home, ["--no-dashboard"])
    try:
        settings = Settings.load(home=home, broker=stack["broker"], database=stack["database"])
        with Client(settings) as client:
            ref = client.models.register(
                "bench-mlp", workloads.export(folder), max_batch_size=workloads.MAX_BATCH_SIZE
            ).ref
            contenders: dict[str, Contender] = {
                "bare loop, one by one": lambda x: np.concatenate([workloads.forward(x[i : i + 1]) for i in range(len(x))]),
                "bare loop, in 64s": lambda x: np.concatenate([workloads.forward(x[i : i + 64]) for i in range(0, len(x), 64)]),
                "plain Celery": plain_celery,
                "forebay": lambda x: np.stack([job.result(120) for job in client.predict_many(ref, x)]),
            }
            for run in contenders.values():
                run(rows[:64])  # warm: workers up, models loaded, connections open
            return take_turns(contenders, rows, rounds)
    finally:
        stop_stack(home)
        celery_worker.terminate()
        celery_worker.wait(30)


def plain_celery(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    import plain_celery

    results = [plain_celery.predict.delay(row) for row in rows.tolist()]
    return np.asarray([r.get(timeout=120) for r in results], np.float32)


def take_turns(contenders: dict[str, Contender], rows: NDArray[np.float32], rounds: int) -> dict[str, list[float]]:
    expected = workloads.forward(rows)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            results = run(rows)
            rates[name].append(len(rows) / (time.perf_counter() - started))
            if not np.allclose(results, expected, atol=1e-5):
                raise SystemExit(f"{name}: a result differs from the direct forward pass")
    return rates


def report(medians: dict[str, float], rates: dict[str, list[float]]) -> None:
    print(f"{'contender':<24}{'jobs/s':>12}{'min':>12}{'max':>12}{'x plain Celery':>18}")
    for name, rate in medians.items():
        low, high = min(rates[name]), max(rates[name])
        print(f"{name:<24}{rate:>12,.0f}{low:>12,.0f}{high:>12,.0f}{rate / medians['plain Celery']:>18.1f}")


if __name__ == "__main__":
    raise SystemExit(main())
