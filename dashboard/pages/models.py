"""The Models page: every registered version with its signature, its aliases, where it is loaded and how its jobs ended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from forebay.contract.job import JobState
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Field
from forebay.dashboard.pages.base import Page
from forebay.dashboard.reads.ledger import LedgerQueries
from forebay.dashboard.reads.trends import WINDOWS, Trend
from forebay.storage.health import Failures, failures_by_model

MAX_NAMES = 200
MAX_SHOWN, MAX_VERSIONS = 5, 100  # versions of a name, and of the only one
MAX_FIELDS = 6


@dataclass(frozen=True, slots=True)
class ModelsPageData:
    """All versions; by name and version, the jobs running now, the bytes by live worker, and why jobs failed."""

    versions: list[ModelVersion]
    running: Mapping[tuple[str, int], int]
    loaded: Mapping[tuple[str, str], Mapping[str, float]]
    failures: Mapping[tuple[str, int], Sequence[Failures]]


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version, its jobs running now and ended in the last day, bytes by worker, and why jobs failed."""

    model: ModelVersion
    running: int
    ended: Mapping[JobState, int]
    loaded: Mapping[str, float]
    failures: Sequence[Failures]


class ModelsPage(Page):
    """`/models`, and `/models?name=…` for those whose name contains a text."""

    tab = template = "models"
    heading = "Models"
    about = "The newest version of each name, and those that have an alias; filter by a name for all of its versions."
    poll_s = 10

    async def get(self) -> None:
        wanted = self.get_query_argument("name", "").strip()
        data, trend = await asyncio.gather(
            self.ledger.read("models", lambda queries: read_models(queries, self.forebay.alive_s), max_age_s=5),
            self.read_trend(WINDOWS["day"]),
        )
        groups = shortened(rows_by_name(data.value, trend.value, wanted), wanted) if data.value is not None else None
        self.show(
            data, trend, groups=groups and groups[:MAX_NAMES], more=max(0, len(groups or ()) - MAX_NAMES), wanted=wanted,
            field_text=partial(field_text, limit=MAX_FIELDS), states=JobState,
        )  # fmt: skip


def read_models(queries: LedgerQueries, alive_s: float) -> ModelsPageData:
    overview = queries.overview
    return ModelsPageData(
        queries.models.versions(), overview.running_by_model(), _loaded(queries, alive_s),
        failures_by_model(queries.ledger),
    )  # fmt: skip


def _loaded(queries: LedgerQueries, alive_s: float) -> Mapping[tuple[str, str], Mapping[str, float]]:
    found: dict[tuple[str, str], dict[str, float]] = {}
    for report in queries.workers.reports():
        for (name, version), size in report.statistics.gauges.get("model_bytes", {}).items():
            if size and report.age_s <= alive_s:
                found.setdefault((name, version), {})[report.info.name] = size
    return found


def rows_by_name(data: ModelsPageData, trend: Trend | None, wanted: str = "") -> list[tuple[str, list[VersionRow]]]:
    """The versions of each name that contains `wanted`, the newest first."""

    def row(model: ModelVersion) -> VersionRow:
        key = model.name, model.version
        return VersionRow(
            model,
            data.running.get(key, 0),
            trend.by_model.get(key, {}) if trend else {},
            data.loaded.get((model.name, str(model.version)), {}),
            data.failures.get(key, ()),
        )

    matching = (model for model in data.versions if wanted.lower() in model.name.lower())
    groups = groupby(matching, key=lambda model: model.name)
    return [(name, [row(model) for model in group][::-1]) for name, group in groups]


def shortened(groups: list[tuple[str, list[VersionRow]]], wanted: str) -> list[tuple[str, list[VersionRow], int]]:
    """Of each name the newest version, those with an alias, and how many others there are; of the name `wanted` more."""
    found = []
    for name, rows in groups:
        whole = name == wanted or len(groups) == 1
        shown = (
            rows[:MAX_VERSIONS]
            if whole
            else [row for i, row in enumerate(rows) if i == 0 or row.model.aliases][:MAX_SHOWN]
        )
        found.append((name, shown, len(rows) - len(shown)))
    return found


def field_text(fields: tuple[Field, ...] | None, limit: int | None = None) -> str:
    """One side of a signature: `x: float32[64], text: str`; of many fields the first `limit`."""
    if fields is None:
        return "not declared"
    shown = fields[:limit]
    more = f", and {len(fields) - len(shown):,} more" if len(fields) > len(shown) else ""
    return ", ".join(f"{field.name}: {_type(field.json())}" for field in shown) + more


def _type(field: Mapping[str, Any]) -> str:
    shape = f"[{', '.join('any' if n == -1 else str(n) for n in field['shape'])}]" if "shape" in field else ""
    return f"{field['dtype']}{shape}"
