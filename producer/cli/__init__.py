"""The producer's commands: `forebay predict`, `batch`, `models`, `jobs` and `queues`. The root command is forebay.cli's."""

from __future__ import annotations

import typer

from forebay.producer.cli.batch import AUDIT_EXAMPLES, audit, batch
from forebay.producer.cli.batch import EXAMPLES as BATCH_EXAMPLES
from forebay.producer.cli.jobs import jobs_app
from forebay.producer.cli.models import models_app
from forebay.producer.cli.predict import EXAMPLES as PREDICT_EXAMPLES
from forebay.producer.cli.predict import predict
from forebay.producer.cli.queues import EXAMPLES as QUEUES_EXAMPLES
from forebay.producer.cli.queues import queues


def attach(app: typer.Typer) -> None:
    """Add the producer's commands to the root command."""
    app.command("predict", epilog=PREDICT_EXAMPLES)(predict)
    app.command("batch", epilog=BATCH_EXAMPLES)(batch)
    jobs_app.command("audit", epilog=AUDIT_EXAMPLES)(audit)
    app.add_typer(jobs_app, name="jobs")
    app.add_typer(models_app, name="models")
    app.command("queues", epilog=QUEUES_EXAMPLES)(queues)
