"""One model version's page: its lineage, its evaluations, and how it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forebay.contract.drift.comparison import Drift
from forebay.contract.errors import InvalidInput, ModelNotFound
from forebay.contract.metrics.statistics import Histogram, Statistics
from forebay.contract.model import ModelVersion
from forebay.contract.references import ModelRef
from forebay.contract.requests.versions.benchmark import Benchmark
from forebay.dashboard.pages.base import CHARTS, Page
from forebay.dashboard.pages.models import field_text
from forebay.dashboard.pages.run import flatten
from forebay.dashboard.reads.curves import benchmark_charts
from forebay.dashboard.reads.ledger import LedgerQueries
from forebay.storage.health import Failures, failures_by_model
from forebay.storage.models.derived import derived_facts
from forebay.storage.training.records import Evaluation, Run

MAX_GENERATIONS = 10
MAX_CHILDREN = 50
MAX_EVALUATIONS = 20
MAX_COLUMNS = 30  # whose importance is shown


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A version and the `lineage` in its metadata; `model` is None when the version is not registered (any more).

    `run` is the training job that the lineage names, None when the ledger has no such run (any more).
    """

    ref: str
    model: ModelVersion | None
    lineage: Mapping[str, Any]
    run: Run | None


@dataclass(frozen=True, slots=True)
class Generated:
    """What a language model has read and generated, as its workers have counted it since they started.

    `per_second` is what it generated in a second of work; `rows` is the mean of a batch, and `first_s` the mean time from a
    batch's start to a row's first text. None where that was not told.
    """

    read: int
    made: int
    per_second: float | None
    rows: float | None
    first_s: float | None


@dataclass(frozen=True, slots=True)
class VersionPageData:
    """What the page shows of a version: its ancestors, itself first, its children, evaluations and benchmarks, and its drift."""

    model: ModelVersion
    ancestors: list[Ancestor]
    children: list[ModelVersion]
    evaluations: list[Evaluation]
    benchmarks: list[Benchmark]
    drift: Drift | None
    failures: Sequence[Failures]
    ceilings: Mapping[str, int]
    generated: Generated | None

    @property
    def held_out(self) -> Mapping[str, Any]:
        """Its metrics on the held-out rows of its training: the run's, or those in its metadata once the run is gone."""
        run, stored = self.ancestors[0].run, self.model.metadata.get("metrics")
        if run is not None and run.metrics is not None:
            return run.metrics
        return stored if isinstance(stored, Mapping) else {}

    @property
    def importance(self) -> list[tuple[str, float, float]]:
        """Its columns, the most important first: as a share of that one, and as a fitted recipe measured it."""
        found = self.model.metadata.get("importance")
        if not isinstance(found, Mapping) or not all(isinstance(value, int | float) for value in found.values()):
            return []
        most = max(found.values(), default=0.0)
        return [
            (name, max(0.0, value / most) if most > 0 else 0.0, float(value))
            for name, value in sorted(found.items(), key=lambda item: -item[1])[:MAX_COLUMNS]
        ]


class VersionPage(Page):
    """`/models/NAME/VERSION`."""

    tab, template = "models", "version"
    scripts = CHARTS
    about = "A registered version: its lineage, its evaluations, and how it runs."
    poll_s = 10

    async def get(self, name: str, version: str) -> None:
        ref = f"{name}/{version}"
        read = self.ledger.read(("version", ref), lambda queries: read_version(queries, ref), max_age_s=2)
        snapshot = await self.or_404(read)
        self.show(
            snapshot, title=ref, heading=ref, data=snapshot.value, field_text=field_text,
            lineage_facts=lineage_facts, derived_facts=derived_facts,
            charts=benchmark_charts(snapshot.value.benchmarks) if snapshot.value else [],
        )  # fmt: skip


def read_version(queries: LedgerQueries, ref: str) -> VersionPageData:
    """A version and its family; ModelNotFound when there is none of this reference."""
    model = queries.models.get(ModelRef.parse(ref))
    children = [other for other in queries.models.versions(model.name) if lineage_of(other).get("parent") == model.ref]
    return VersionPageData(
        model,
        list(_ancestors(queries, model)),
        children[:MAX_CHILDREN],
        queries.training.evaluations(model.name, model.version, MAX_EVALUATIONS),
        queries.benchmarks.of_version(model.name, model.version, MAX_EVALUATIONS),
        queries.drift.drift((model.name, model.version)),
        failures_by_model(queries.ledger).get((model.name, model.version), ()),
        queries.overview.ceilings().get((model.name, model.version), {}),
        generated([report.statistics for report in queries.workers.reports()], model),
    )


def generated(workers: Sequence[Statistics], model: ModelVersion) -> Generated | None:
    """None for a model that has generated nothing."""
    key = model.name, str(model.version)
    read, made = (sum(s.total(f"{name}_tokens_total", *key) for s in workers) for name in ("prompt", "completion"))
    if not made:
        return None

    def mean(name: str) -> float | None:
        found: list[Histogram] = [s.histograms[name][key] for s in workers if key in s.histograms.get(name, {})]
        count = sum(one.count for one in found)
        return sum(one.total for one in found) / count if count else None

    seconds = sum(
        s.histograms["forward_seconds"][key].total for s in workers if key in s.histograms.get("forward_seconds", {})
    )
    return Generated(
        int(read), int(made), made / seconds if seconds else None, mean("batch_rows"), mean("first_text_seconds")
    )


def lineage_of(model: ModelVersion) -> Mapping[str, Any]:
    """The lineage in its metadata, which are the user's and may hold anything."""
    found = model.metadata.get("lineage")
    return found if isinstance(found, Mapping) else {}


def _ancestors(queries: LedgerQueries, model: ModelVersion) -> Iterator[Ancestor]:
    """The version, its parent, its parent's parent, and so on."""
    seen: set[str] = set()
    current: ModelVersion | None = model
    ref = model.ref
    while ref not in seen and len(seen) < MAX_GENERATIONS:
        seen.add(ref)
        lineage = lineage_of(current) if current else {}
        job = lineage.get("job")
        run = queries.training.runs_by_id([job]).get(job) if isinstance(job, str) else None
        yield Ancestor(ref, current, lineage, run)
        parent = lineage.get("parent")
        if not isinstance(parent, str):
            return
        ref, current = parent, _find(queries, parent)


def _find(queries: LedgerQueries, ref: str) -> ModelVersion | None:
    try:
        return queries.models.get(ModelRef.parse(ref))
    except (InvalidInput, ModelNotFound):
        return None


def lineage_facts(lineage: Mapping[str, Any], *names: str) -> list[tuple[str, Any]]:
    """Those of its facts that are there, nested ones by dotted names."""
    return list(flatten({name: lineage[name] for name in names if name in lineage}))
