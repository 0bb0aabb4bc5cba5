"""What the dashboard asks about training: runs by their ids, and curves with no more points than a chart can show.

Reads only. Which training jobs there are is told by JobViews; how they are shown is not known here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from forebay.contract.job import at
from forebay.storage.training.queries import RUN_COLUMNS, TrainingQueries, run_of
from forebay.storage.training.records import Evaluation, Measured, Run

MOST_POINTS = 500  # of one split of one run
MOST_EVALUATIONS = 20

ABOUT = f"SELECT {RUN_COLUMNS} FROM training_runs r JOIN jobs j ON j.id = r.id WHERE r.id {{ids}}"
# Which steps are shown is told by the index alone: each so-manieth of a split, and its last.
THINNED = """
SELECT m.split, m.step, m.epoch, m.at, m.measured, m.rows_per_s FROM (
    SELECT split, step, row_number() OVER (PARTITION BY split ORDER BY step) AS number,
        count(*) OVER (PARTITION BY split) AS many
    FROM job_metrics WHERE job_id = :id) AS n
JOIN job_metrics m ON m.job_id = :id AND m.split = n.split AND m.step = n.step
WHERE (n.number - 1) % ((n.many - 1) / :most + 1) = 0 OR n.number = n.many ORDER BY m.step, m.split"""


class TrainingViews(TrainingQueries):
    """Training runs for people. Thread-safe."""

    def about(self, ids: Sequence[str]) -> dict[str, Run]:
        """Those of these training jobs that have begun."""
        return {run.id: run for run in map(run_of, self._rows(ABOUT, ids=self.ledger.bind(ids)))}

    def thinned(self, id: str, most: int = MOST_POINTS) -> list[Measured]:
        """A run's curve, of each split about `most` points at most, evenly over its steps, the first and the last among them."""
        return [
            Measured(split, step, epoch, at(when), json.loads(measured), rows_per_s)
            for split, step, epoch, when, measured, rows_per_s in self._rows(THINNED, id=id, most=most)
        ]

    def found_worth(self, model: str, version: int) -> list[Evaluation]:
        """What a version was found to be worth, the newest few."""
        return self.evaluations(model, version, MOST_EVALUATIONS)
