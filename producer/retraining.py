"""`client.retraining`: trainings that drift sets off."""

from __future__ import annotations

from typing import Any, Unpack

import msgspec

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind
from forebay.contract.references import check_name, shown
from forebay.datasets import require_pyarrow
from forebay.producer.options import SubmitOptions, TrainOptions
from forebay.producer.session import Session
from forebay.producer.submit import Submitter
from forebay.storage.training.standing import Asked, StandingTraining, StandingTrainings

Standing = list[StandingTraining]


class Retraining:
    """Standing trainings: kept in the ledger, looked at by the workers' sweeps once a minute, until they are removed."""

    def __init__(self, session: Session, submitted_by: str | None = None) -> None:
        self._session, self._submitted_by = session, submitted_by
        self._standing = StandingTrainings(session.ledger)

    def add(self, model: str, when_drift: float, **options: Unpack[TrainOptions]) -> StandingTraining:
        """Train the next version of `model` whenever the PSI of a column of the version that `alias` names, or else of the
        newest, reaches `when_drift` in the last 24 hours: once for each version (and reference) that drifts.

        `options` are those of `Client.train`; the files of the data set are found anew each time, so that a glob or folder brings
        what has been added. Raises what `train` raises.
        """
        require_pyarrow()
        from forebay.datasets.formats.files import absolute
        from forebay.producer.requests import training

        if type(when_drift) not in (int, float) or not 0 < when_drift < float("inf"):
            raise InvalidInput(f"when_drift {shown(when_drift)} is not a PSI above 0, such as 0.2")
        submit: dict[str, Any] = {name: v for name, v in options.items() if name in SubmitOptions.__annotations__}
        for name in ("deadline", "idempotency_key"):
            if submit.get(name) is not None:
                raise InvalidInput(f"{name} is for a training that is submitted now; leave it out")
        asked: dict[str, Any] = {name: value for name, value in options.items() if name not in submit}
        request = training.make_request(self._session.registry.get, **asked, metadata=options.get("metadata"))
        resolved = Submitter(self._session).check(JobKind.TRAIN, training.draft(model, request), submit)
        given = options["dataset"]
        dataset = [given] if not isinstance(given, list | tuple) else given
        about = Asked(
            msgspec.structs.replace(request, files=()), tuple(absolute(str(one)) for one in dataset), resolved.queue,
            resolved.priority, resolved.max_attempts, self._submitted_by,
        )  # fmt: skip
        return self._standing.add(model, float(when_drift), about)

    def list(self, model: str | None = None) -> Standing:
        """All of them, or a model's, oldest first, each with the jobs that it has set off and why."""
        return self._standing.all(None if model is None else check_name(model))

    def remove(self, id: str) -> None:
        """Set nothing off any more; jobs that were set off go on. InvalidInput when there is none of this id."""
        self._standing.remove(id)
