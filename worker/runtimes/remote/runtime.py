"""Runs a version on another server, behind an OpenAI-compatible API: vLLM, SGLang, a hosted API, or another Forebay.

`options` are those of RemoteOptions; there is no artifact. The key comes from the worker's environment. It is stored nowhere,
and told only to an endpoint that the operator lists with its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from forebay.contract.errors import InvalidInput, ModelLoadFailed, ModelRefused
from forebay.contract.model import ModelVersion
from forebay.contract.runtimes.endpoints import RemoteOptions
from forebay.contract.settings import Settings, inherited
from forebay.contract.signature import Row
from forebay.worker.runtimes.remote.concurrency import Concurrency
from forebay.worker.runtimes.remote.endpoint import Endpoint
from forebay.worker.runtimes.remote.forms import form_of
from forebay.worker.runtimes.remote.running import Route, RunningRows

TIMEOUT_S = 600.0  # of a request to a version without `timeout_s`
_KEY = re.compile(r"[\x21-\x7e]+")


class OpenAI:
    """Checks that the version's endpoint is on the operator's list, and finds its key."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        del allowed  # no code is imported

    def load(self, path: Path | None, device: str, spec: ModelVersion) -> RemoteModel:
        """ModelRefused for an endpoint that is not allowed, ModelLoadFailed without its key. Nothing is sent."""
        del path, device
        try:
            options = RemoteOptions.parse(spec.options)
            options.check_allowed(Settings.load().allowed_endpoints)
        except InvalidInput as error:
            raise ModelRefused(f"{spec.ref}: {error}") from error
        window = _window(options.base_url, options.api_key_env)
        endpoint = Endpoint(options.url, _key(spec.ref, options.api_key_env), window, spec.timeout_s or TIMEOUT_S)
        form = form_of(options.endpoint)
        at_once = spec.max_batch_size if form.rows_at_once else 1
        return RemoteModel(Route(endpoint, form, options.model, at_once, options.concurrency))


class RemoteModel:
    """A version whose rows run side by side, elsewhere."""

    def __init__(self, route: Route) -> None:
        self._route = route

    def run_each(self, rows: Sequence[Row], insist: bool, at_once: Callable[[], int] | None = None) -> RunningRows:
        del at_once  # as many as the endpoint takes
        return RunningRows(self._route, rows, insist)

    def predict(self, rows: Sequence[Row]) -> list[Row]:
        """All rows; the first error is raised."""
        made: dict[int, Any] = {}
        with closing(self.run_each(rows, insist=False)) as running:
            while len(made) < len(rows):
                made |= running.wait(1.0).outputs
        for i in range(len(rows)):
            if isinstance(made[i], Exception):
                raise made[i]
        return [made[i] for i in range(len(rows))]

    def nbytes(self) -> int:
        return 0


@cache
def _window(base_url: str, key: str | None) -> Concurrency:
    """The one of an endpoint, for all versions that this process has there."""
    del base_url, key
    return Concurrency()


def _key(ref: str, name: str | None) -> str | None:
    if name is None:
        return None
    key = inherited().get(name, "").strip()
    if not _KEY.fullmatch(key):
        raise ModelLoadFailed(
            f"{ref}: the environment variable {name} of this worker holds no key; set it where `forebay worker` is started"
        )
    return key
