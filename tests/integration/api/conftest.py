"""The server over the stack that the tests of a module share, and OpenAI's client of it."""

from collections.abc import Iterator

import openai
import pytest

from support.api import RunningApi, running_api
from support.worker_stack import WorkerStack


@pytest.fixture(scope="module")
def api(stack: WorkerStack) -> Iterator[RunningApi]:
    with running_api(stack.settings) as api:
        yield api


@pytest.fixture(scope="module")
def client(api: RunningApi) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{api.port}/v1", api_key="none", max_retries=0) as client:
        yield client
