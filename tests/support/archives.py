"""Hostile .pt2 files: none at all, cut off, or with what torch would unpickle or compile."""

import itertools
import zipfile
from collections.abc import Iterator
from pathlib import Path


def hostile_archives(good: Path, folder: Path) -> Iterator[Path]:
    """As many as are asked for: some eighty kinds, then the good one with one byte after the other missing."""
    whole = good.read_bytes()
    for n in range(40):
        yield _file(folder / f"cut{n}.pt2", whole[: n * len(whole) // 40])
    for n, text in enumerate(
        (b"", b"PK\x03\x04", b"\x80\x04.", b"#!/bin/sh\n", b"\0" * 4096, b"PK\x05\x06" + b"\0" * 18)
    ):
        yield _file(folder / f"none{n}.pt2", text)
    with zipfile.ZipFile(good) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(entries)).split("/")[0]
    pickled = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x09touch /x!\x94\x85\x94R\x94."
    for n, name in enumerate((
        f"{root}/data/aotinductor/model/x.so", f"{root}/data/constants/custom_obj_0", f"{root}/data/weights/weight_0.pt",
        f"{root}/models/other.json", f"{root}/code/x.py", f"{root}/../../x", "/etc/x", f"{root}/data.pkl",
        "other/models/model.json", f"{root}/data/constants/opaque_obj_0",
    )):  # fmt: skip
        yield _archive(folder / f"extra{n}.pt2", entries | {name: pickled})
    for n, name in enumerate(sorted(entries)):
        if name.endswith(".json"):
            yield _archive(folder / f"without{n}.pt2", {k: v for k, v in entries.items() if k != name})
            for m, text in enumerate((b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": ' * 5000, b"1e999", b'"x"')):
                yield _archive(folder / f"json{n}-{m}.pt2", entries | {name: text})
    for n in itertools.count(1):
        yield _file(folder / f"short{n}.pt2", whole[:-n])


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _archive(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path
