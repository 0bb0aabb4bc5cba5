"""A folder as one blob: a tar that depends on names and contents only, and is unpacked nowhere but where it belongs."""

from __future__ import annotations

import secrets
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from forebay.contract.errors import ModelRefused


def pack_folder(folder: Path, target: Path) -> None:
    """A folder as a tar that depends on names and contents only, so that equal folders are equal blobs."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            info.size, info.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                tar.addfile(info, file)


def unpack_folder(archive: Path, target: Path) -> Path:
    """The reverse, whole or not at all; ModelRefused for a member that would leave `target`, and for what is no tar."""
    if target.is_dir():
        return target
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    try:
        temporary.mkdir()
        with tarfile.open(archive, "r:") as tar:
            tar.extractall(temporary, _plain_members(tar), filter="data")
        temporary.rename(target)
    except tarfile.TarError as error:
        raise ModelRefused(
            f"the folder's archive cannot be unpacked safely: {error}; register the folder again"
        ) from error
    except OSError:
        if not target.is_dir():  # another process may have unpacked the same archive meanwhile
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _plain_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Files and folders only: `pack_folder` makes nothing else, and Python's own filter has been led astray by links before."""
    for member in tar:
        if not (member.isdir() or (member.isreg() and not member.issparse())):
            raise tarfile.TarError(f"{member.name!r} is neither a file nor a folder")
        yield member
