"""The routes of OpenAI's API."""

from __future__ import annotations

from starlette.routing import Route

from forebay.api.context import RouteGroup
from forebay.api.errors import Dialect
from forebay.api.openai.batches import cancel_batch, create_batch, get_batch, list_batches
from forebay.api.openai.completions import create_chat_completion, create_completion
from forebay.api.openai.embeddings import create_embeddings
from forebay.api.openai.files import create_file, delete_file, get_content, get_file, list_files
from forebay.api.openai.models import get_model, list_models

FILES = RouteGroup(
    Dialect.OPENAI,
    "/v1/files",
    [
        Route("/v1/files", create_file, methods=["POST"]),
        Route("/v1/files", list_files),
        Route("/v1/files/{id}", get_file),
        Route("/v1/files/{id}", delete_file, methods=["DELETE"]),
        Route("/v1/files/{id}/content", get_content),
    ],
    "api_max_file_bytes",
)
OPENAI = RouteGroup(
    Dialect.OPENAI,
    "/v1/",
    [
        Route("/v1/models", list_models),
        Route("/v1/models/{model:path}", get_model),
        Route("/v1/embeddings", create_embeddings, methods=["POST"]),
        Route("/v1/batches", create_batch, methods=["POST"]),
        Route("/v1/batches", list_batches),
        Route("/v1/batches/{id}", get_batch),
        Route("/v1/batches/{id}/cancel", cancel_batch, methods=["POST"]),
        Route("/v1/chat/completions", create_chat_completion, methods=["POST"]),
        Route("/v1/completions", create_completion, methods=["POST"]),
    ],
)
