"""Where a payload lies: in the job's row when it is small, in the blob store when it is not, nowhere when it is too large."""

from __future__ import annotations

from forebay.contract.errors import PayloadTooLarge
from forebay.contract.queues import format_bytes
from forebay.contract.settings import Settings
from forebay.storage.blobs.store import BlobStore


class Payloads:
    """Stores and loads the bytes of inputs and results by the limits of the settings."""

    def __init__(self, blobs: BlobStore, settings: Settings) -> None:
        self._blobs = blobs
        self._inline = settings.max_inline_bytes
        self._limit = settings.max_payload_bytes

    def check(self, data: bytes) -> None:
        """PayloadTooLarge when the bytes exceed the hard limit."""
        if len(data) > self._limit:
            raise PayloadTooLarge(
                f"the payload has {format_bytes(len(data))}, the limit is {format_bytes(self._limit)}; "
                "send fewer or smaller rows, or raise max_payload_bytes (FOREBAY_MAX_PAYLOAD_BYTES)"
            )

    def fits_inline(self, data: bytes) -> bool:
        """Whether these bytes need no blob."""
        return len(data) <= self._inline

    def store(self, data: bytes) -> tuple[bytes | None, str | None]:
        """(inline bytes, None) or (None, blob name)."""
        if self.fits_inline(data):
            return data, None
        return None, self._blobs.put(data)

    def load(self, inline: bytes | None, ref: str | None) -> bytes:
        """The bytes again, whichever way they were stored."""
        if ref is not None:
            return self._blobs.get(ref)
        return inline or b""
