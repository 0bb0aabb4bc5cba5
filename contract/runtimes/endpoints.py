"""Where a remote model is: the options of a version that another server runs, and whether the operator allows its address."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.fields import check

REMOTE = "openai"  # the runtime
_BASE_URL = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?(?:/[\w.~-]+)*/?", re.ASCII | re.I)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)
_PORTS = {"http": 80, "https": 443}


class RemoteOptions(Struct, frozen=True):
    """The options of a version with the runtime `openai`. `base_url` is what OpenAI's clients call so, such as
    `http://gpu7:8000/v1`; the key is read in the worker from the variable `api_key_env`.
    """  # fmt: skip

    base_url: str
    model: Annotated[str, Meta(min_length=1, max_length=500, title="the model's name at the endpoint")]
    api_key_env: str | None = None
    endpoint: Literal["chat", "completions", "embeddings"] = "chat"
    concurrency: Annotated[int, Meta(ge=1, le=1000, description="requests at once, at most, of one child")] = 64

    @property
    def url(self) -> str:
        """Where requests go."""
        return f"{self.base_url.rstrip('/')}/{'chat/completions' if self.endpoint == 'chat' else self.endpoint}"

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> RemoteOptions:
        """InvalidInput names the option that is missing, unknown or not valid."""
        try:
            made = check(options, cls)
        except InvalidInput as error:
            raise InvalidInput(f"options of runtime {REMOTE!r}: {error}") from error
        _split(made.base_url)
        if made.api_key_env is not None and not _VARIABLE.fullmatch(made.api_key_env):
            raise InvalidInput("options: api_key_env is the name of an environment variable of the worker, not a key")
        return made

    def check_allowed(self, allowed: Iterable[str]) -> None:
        """InvalidInput unless the operator's list, the setting `allowed_endpoints`, has the URL, and with it the key's name."""
        wanted, names = _split(self.base_url), []
        for entry in allowed:
            url, *keys = entry.split()
            *server, path = _split(url)
            if server == list(wanted[:3]) and f"{wanted[3]}/".startswith(f"{path}/"):
                names += keys
                if self.api_key_env is None or self.api_key_env in keys:
                    return
        entry = " ".join(filter(None, (self.base_url, self.api_key_env)))
        words = (
            f"the key {self.api_key_env!r} may not be sent to {self.base_url}"
            if names
            else f"{self.base_url} is not allowed"
        )
        raise InvalidInput(
            f"{words}: the operator lists {entry!r} in allowed_endpoints (FOREBAY_ALLOWED_ENDPOINTS), for workers and clients"
        )


def _split(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and path; InvalidInput for anything that two readers could understand differently."""
    if not _BASE_URL.fullmatch(url) or re.search(r"/\.{1,2}(/|$)", url):
        raise InvalidInput(
            f"{shown(url)} is not a base URL; write http://host:8000/v1, without user, query and fragment"
        )
    parts = urlsplit(url)
    try:
        port = parts.port or _PORTS[parts.scheme]
    except ValueError as error:
        raise InvalidInput(f"{shown(url)} is not a base URL: {error}") from error
    return parts.scheme, parts.hostname or "", port, parts.path.rstrip("/")
