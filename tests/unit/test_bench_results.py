"""A run of the benchmark is held against the last one of each figure that was stored, and says what was lost."""

from pathlib import Path

from bench.results import BASELINES, FOREBAY, Results, as_json, compared
from bench.targets import Target


def run(workload: str, forebay: float, processor_us: float) -> Results:
    results = Results(workload)
    for _ in range(3):
        results.add(BASELINES[0], 100.0, 2.0)
        results.add(FOREBAY, forebay, 3.0)
        results.add_processor(FOREBAY, {"client": processor_us / 1e6})
    return results


def target(ratio: float) -> Target:
    return Target("scale", "", "", {"ratio": ratio})


def test_each_figure_is_compared_with_where_it_was_last_stored_and_a_loss_is_told(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(as_json([run("W1", 300, 50), run("W4", 200, 50)], [target(1.9)]))
    (tmp_path / "2.json").write_text(as_json([run("W1", 250, 60)]))
    now = [run("W1", 230, 50), run("W4", 230, 60), run("W2", 1, 1)]
    assert list(compared(now, [target(1.5)], tmp_path)) == [
        "W1, times plain Celery: 2.30, 2.50 in 2.json: a loss",
        "W1, processor µs a job: 50.00, 60.00 in 2.json",
        "W4, times plain Celery: 0.43, 0.50 in 1.json: a loss",
        "W4, processor µs a job: 60.00, 50.00 in 1.json: a loss",
        "scale: 1.50, 1.90 in 1.json: a loss",
    ]
    assert list(compared(now, [], tmp_path / "none")) == []
