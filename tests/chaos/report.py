"""What a run was asked for and what it found, as people and machines read it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.audit import Findings
from chaos.plan import KINDS
from forebay.contract.job import JobKind


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. `jobs` counts predictions. `home` None is a temporary folder; `keep` leaves the folder there."""

    jobs: int = 2000
    workers: int = 2
    seed: int = 1
    seconds: float = 90.0
    database: str = "sqlite"
    kinds: Collection[JobKind] = KINDS
    home: Path | None = None
    keep: bool = False

    @property
    def settle_s(self) -> float:
        """How long after the last fault a job may take to end before it counts as hung."""
        return max(120.0, 3 * self.seconds)


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found. `home` is where everything lies, if it was kept."""

    options: Options
    findings: Findings
    injected: dict[str, int]
    refused: int
    given_up: int
    client_faults: list[str]
    settled_s: float
    took_s: float
    home: Path | None

    @property
    def sound(self) -> bool:
        """Whether every promise was kept."""
        return self.findings.sound and not self.client_faults

    def as_dict(self) -> dict[str, Any]:
        """The report as one JSON object."""
        f, runs, options = self.findings, self.findings.executions, self.options
        return {
            "seed": options.seed, "database": options.database.partition(":")[0].partition("+")[0],
            "jobs": options.jobs, "workers": options.workers, "seconds": options.seconds, "accepted": f.accepted,
            "succeeded": f.succeeded, "failed": f.failed, "canceled": f.canceled, "retried": f.retried,
            "kinds": {kind: dict(sorted(states.items())) for kind, states in sorted(f.kinds.items())},
            "lost": f.lost, "hung": f.hung, "written_twice": f.written_twice, "wrong": f.wrong,
            "over_max_attempts": f.over_max_attempts, "unacknowledged": f.unacknowledged, "batch_rows": dict(f.rows),
            "executions": {str(n): runs[n] for n in sorted(runs)}, "most_executions": max(runs, default=0),
            "submits_refused": self.refused, "jobs_given_up": self.given_up,
            "faults": self.injected, "settled_s": round(self.settled_s, 1), "took_s": round(self.took_s, 1),
            "problems": [*self.client_faults, *f.problems], "home": str(self.home) if self.home else None,
        }  # fmt: skip

    def fields(self) -> dict[str, object]:
        """The report for people: counts in words, nested ones on one line."""
        fields = self.as_dict()
        fields["executions"] = ", ".join(f"{jobs} jobs {runs} times" for runs, jobs in fields["executions"].items())
        fields["kinds"] = "; ".join(f"{kind}: {_counts(states)}" for kind, states in fields["kinds"].items())
        fields |= {name: _counts(fields[name]) for name in ("faults", "batch_rows")}
        del fields["problems"]
        return {name.replace("_", " "): value for name, value in fields.items()}

    def row(self) -> dict[str, object]:
        """The figures of one run among several."""
        d = self.as_dict()
        names = (
            "seed",
            "database",
            "accepted",
            "lost",
            "hung",
            "written_twice",
            "wrong",
            "over_max_attempts",
            "unacknowledged",
        )
        rows = d["batch_rows"]
        return {name: d[name] for name in names} | {
            "batch rows": rows.get("read", 0), "lost or doubled": rows.get("lost", 0) + rows.get("doubled", 0),
            "faults": sum(d["faults"].values()), "client faults": len(self.client_faults),
            "settled_s": d["settled_s"], "took_s": d["took_s"],
        }  # fmt: skip


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
