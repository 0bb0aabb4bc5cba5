"""The Models page: every registered version with what it takes and gives, where it is called what, and how it has done."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from forebay.contract.job import JobState
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Field
from forebay.dashboard.pages.base import Page
from forebay.dashboard.reads.ledger_view import ConsumerHealth
from forebay.dashboard.reads.trends import WINDOWS, Trend

MOST_NAMES = 200
MOST_FIELDS = 6


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version: what is registered, jobs running now and ended in the last day, rows that fit by device, bytes by worker."""

    model: ModelVersion
    running: int
    ended: Mapping[JobState, int]
    ceilings: Mapping[str, int]
    loaded: Mapping[str, float]


class ModelsPage(Page):
    """`/models`, and `/models?name=…` for those whose name holds a text."""

    tab = "models"

    async def get(self) -> None:
        """The page, or the part that changes."""
        wanted = self.get_query_argument("name", "").strip()
        trends, day = self.application.trends, WINDOWS["day"]
        rows, trend = await asyncio.gather(
            self.ledger.ask("models", lambda ears: _versions(ears, 3 * self.forebay.heartbeat_s), fresh_s=5),
            self.ledger.ask(("trend", day.name), lambda ears: trends.read(ears.overview, day), day.fresh_s),
        )
        groups = by_name(rows.value, trend.value, wanted) if rows.value is not None else None
        self.show(
            "models", rows, trend, groups=groups and groups[:MOST_NAMES], more=max(0, len(groups or ()) - MOST_NAMES),
            wanted=wanted, field_text=partial(field_text, most=MOST_FIELDS), window=day, states=JobState,
        )  # fmt: skip


Versions = tuple[
    list[ModelVersion],
    Mapping[tuple[str, int], int],
    Mapping[tuple[str, int], Mapping[str, int]],
    Mapping[tuple[str, str], Mapping[str, float]],
]


def _versions(ears: ConsumerHealth, alive_s: float) -> Versions:
    return ears.models.versions(), ears.overview.running_by_model(), ears.overview.ceilings(), _loaded(ears, alive_s)


def _loaded(ears: ConsumerHealth, alive_s: float) -> Mapping[tuple[str, str], Mapping[str, float]]:
    """By name and version, as statistics have them: what it takes up on each living worker that holds it, in bytes."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for report in ears.workers.reports():
        for (name, version), size in report.statistics.gauges.get("model_bytes", {}).items():
            if size and report.age_s <= alive_s:
                found.setdefault((name, version), {})[report.info.name] = size
    return found


def by_name(versions: Versions, trend: Trend | None, wanted: str = "") -> list[tuple[str, list[VersionRow]]]:
    """The versions of each name, the newest first."""
    models, running, ceilings, loaded = versions
    ended: Mapping[tuple[str, int], Mapping[JobState, int]] = trend.by_model if trend else {}
    found = []
    for name, group in groupby((m for m in models if wanted.lower() in m.name.lower()), key=lambda m: m.name):
        keys = [(m, (m.name, m.version)) for m in group]
        rows = [
            VersionRow(m, running.get(k, 0), ended.get(k, {}), ceilings.get(k, {}), loaded.get((k[0], str(k[1])), {}))
            for m, k in keys
        ]
        found.append((name, rows[::-1]))
    return found


def field_text(fields: tuple[Field, ...] | None, most: int | None = None) -> str:
    """A side of a signature in words: `x: float32[64], text: str`; of many fields the first, where `most` is given."""
    if fields is None:
        return "not declared"
    shown = fields[:most]
    more = f", and {len(fields) - len(shown):,} more" if len(fields) > len(shown) else ""
    return ", ".join(f"{field.name}: {_type(field.json())}" for field in shown) + more


def _type(field: Mapping[str, Any]) -> str:
    shape = f"[{', '.join('any' if n == -1 else str(n) for n in field['shape'])}]" if "shape" in field else ""
    return f"{field['dtype']}{shape}"
