"""The producer's commands: `predict`, `batch`, `train`, `evaluate`, `models`, `jobs` and others."""

from __future__ import annotations

import typer

from forebay.producer.cli.batch import EXAMPLES as BATCH_EXAMPLES
from forebay.producer.cli.batch import batch
from forebay.producer.cli.evaluate import EXAMPLES as EVALUATE_EXAMPLES
from forebay.producer.cli.evaluate import evaluate
from forebay.producer.cli.jobs import jobs_app
from forebay.producer.cli.models import models_app
from forebay.producer.cli.predict import EXAMPLES as PREDICT_EXAMPLES
from forebay.producer.cli.predict import predict
from forebay.producer.cli.queues import EXAMPLES as QUEUES_EXAMPLES
from forebay.producer.cli.queues import queues
from forebay.producer.cli.train import EXAMPLES as TRAIN_EXAMPLES
from forebay.producer.cli.train import RECIPES_EXAMPLES, recipes, train


def attach(app: typer.Typer) -> None:
    app.command("predict", epilog=PREDICT_EXAMPLES)(predict)
    app.command("batch", epilog=BATCH_EXAMPLES)(batch)
    app.command("train", epilog=TRAIN_EXAMPLES)(train)
    app.command("evaluate", epilog=EVALUATE_EXAMPLES)(evaluate)
    app.command("recipes", epilog=RECIPES_EXAMPLES)(recipes)
    app.add_typer(jobs_app, name="jobs")
    app.add_typer(models_app, name="models")
    app.command("queues", epilog=QUEUES_EXAMPLES)(queues)
