"""What a user writes by hand: an endpoint that sends a Celery task and waits for its result. Served by uvicorn."""

from __future__ import annotations

from typing import Any

from fastapi import Body, FastAPI

from bench import plain_celery

app = FastAPI()


@app.post("/predict")
def predict(inputs: list[float] = Body(embed=True)) -> Any:  # noqa: B008 - as FastAPI has it
    """One prediction, one task; FastAPI runs this in one of its threads."""
    return {"result": plain_celery.predict.delay("mlp", inputs).get(timeout=30)}
