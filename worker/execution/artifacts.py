"""Artifacts on this machine's disk: fetched from the blob store once, checked, shared by every child."""

from __future__ import annotations

from pathlib import Path

from forebay.contract.model import ModelVersion
from forebay.storage.blobs.store import BlobStore, unpack_folder


class Artifacts:
    """A folder of artifacts by checksum. Safe for several processes: each file is put in place whole."""

    def __init__(self, blobs: BlobStore, folder: Path) -> None:
        self._blobs = blobs
        self._folder = folder

    def fetch(self, model: ModelVersion) -> Path | None:
        """Where the version's artifact lies: a file, a folder, or None for a runtime that needs none."""
        if model.artifact_form == "none":
            return None
        digest = model.artifact.removeprefix("sha256:")
        if model.artifact_form == "folder":
            return self._folder_of(model.artifact, digest)
        path = self._folder / digest
        return path if path.is_file() else self._blobs.fetch(model.artifact, path)

    def _folder_of(self, ref: str, digest: str) -> Path:
        target = self._folder / f"{digest}.d"
        if target.is_dir():
            return target
        archive = self._blobs.fetch(ref, self._folder / f"{digest}.tar")
        try:
            return unpack_folder(archive, target)
        finally:
            archive.unlink(missing_ok=True)
