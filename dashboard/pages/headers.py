"""The security headers of every answer, Flower's pages included."""

from __future__ import annotations

import secrets
from typing import Any

from tornado.httputil import HTTPHeaders
from tornado.web import OutputTransform

# Scripts and styles come from files of Flower's and ours; Bootstrap's style sheet holds its icons as data: images.
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}


class SecurityHeaders(OutputTransform):  # type: ignore[misc] # tornado's types are not followed
    """Adds those that a handler has not set itself."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, *_: Any
    ) -> tuple[int, HTTPHeaders, bytes]:
        """What is sent."""
        for name, value in HEADERS.items():
            headers.setdefault(name, value)
        return status_code, headers, chunk


def script_nonce(handler: Any) -> str:
    """A nonce for a script that stands in a page of Flower's; the answer's policy allows that one beside the files."""
    nonce = secrets.token_urlsafe(16)
    handler.set_header(
        "Content-Security-Policy", CSP.replace("script-src 'self'", f"script-src 'self' 'nonce-{nonce}'")
    )
    return nonce
