"""One model version's page: where it comes from, what it was found to be worth, and how it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tornado.web import HTTPError

from forebay.contract.errors import InvalidInput, ModelNotFound
from forebay.contract.model import ModelVersion
from forebay.contract.references import ModelRef
from forebay.dashboard.pages.base import Page
from forebay.dashboard.pages.models import field_text
from forebay.dashboard.pages.run import flat
from forebay.dashboard.reads.ledger_view import ConsumerHealth
from forebay.storage.training.records import Evaluation, Run

GENERATIONS = 10  # how far back one looks
MOST_CHILDREN = 50


@dataclass(frozen=True, slots=True)
class Origin:
    """A version and what its metadata tell under `lineage`; `model` is None when the version is not registered (any more).

    `run` is the training job it names, None when the ledger has no such run (any more).
    """

    ref: str
    model: ModelVersion | None
    lineage: Mapping[str, Any]
    run: Run | None


@dataclass(frozen=True, slots=True)
class SeenVersion:
    """What the page shows of a version: its line of parents, itself first, those that grew from it, and its evaluations."""

    model: ModelVersion
    origins: list[Origin]
    children: list[ModelVersion]
    evaluations: list[Evaluation]

    @property
    def held_out(self) -> Mapping[str, Any]:
        """Its metrics on the held-out rows of its training: the run's, or what its metadata tell once the run is gone."""
        run, told = self.origins[0].run, self.model.metadata.get("metrics")
        if run is not None and run.metrics is not None:
            return run.metrics
        return told if isinstance(told, Mapping) else {}


class VersionPage(Page):
    """`/models/NAME/VERSION`."""

    tab = "models"

    async def get(self, name: str, version: str) -> None:
        """The page, or the part that changes; 404 for a version that is not there."""
        ref = f"{name}/{version}"
        try:
            answer = await self.ledger.ask(("version", ref), lambda ears: look(ears, ref), fresh_s=2)
        except (InvalidInput, ModelNotFound) as error:
            raise HTTPError(404, "%s", str(error)) from error
        self.show("version", answer, ref=ref, seen=answer.value, field_text=field_text, told=told)


def look(ears: ConsumerHealth, ref: str) -> SeenVersion:
    """Read a version and its family; ModelNotFound when there is none of this reference."""
    model = ears.models.get(ModelRef.parse(ref))
    family = [other for other in ears.models.versions(model.name) if lineage_of(other).get("parent") == model.ref]
    return SeenVersion(
        model, list(_origins(ears, model)), family[:MOST_CHILDREN], ears.training.found_worth(model.name, model.version)
    )


def lineage_of(model: ModelVersion) -> Mapping[str, Any]:
    """What its metadata tell of where it comes from; they are the user's, and may hold anything."""
    found = model.metadata.get("lineage")
    return found if isinstance(found, Mapping) else {}


def _origins(ears: ConsumerHealth, model: ModelVersion) -> Iterator[Origin]:
    """The version, its parent, its parent's parent, and so on."""
    seen: set[str] = set()
    current: ModelVersion | None = model
    ref = model.ref
    while ref not in seen and len(seen) < GENERATIONS:
        seen.add(ref)
        lineage = lineage_of(current) if current else {}
        job = lineage.get("job")
        run = ears.training.about([job]).get(job) if isinstance(job, str) else None
        yield Origin(ref, current, lineage, run)
        parent = lineage.get("parent")
        if not isinstance(parent, str):
            return
        ref, current = parent, _found(ears, parent)


def _found(ears: ConsumerHealth, ref: str) -> ModelVersion | None:
    try:
        return ears.models.get(ModelRef.parse(ref))
    except (InvalidInput, ModelNotFound):
        return None


def told(lineage: Mapping[str, Any], *names: str) -> Sequence[tuple[str, Any]]:
    """Those of its facts that are there, by name, nested ones with dots."""
    return list(flat({name: lineage[name] for name in names if name in lineage}))
