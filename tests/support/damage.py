"""Damaged files, the same for a number at every run, and what becomes of who reads them."""

import io
import json
import random
import resource
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from forebay.contract.errors import ForebayError
from forebay.contract.pt2.archive import read_pt2_signature
from forebay.contract.requests.batch import BatchRequest, InputFile
from forebay.contract.signature import Signature
from forebay.datasets.formats.isolated import MEMORY_BYTES
from forebay.datasets.formats.source import get_source
from forebay.datasets.planning.checking import check_file, check_rows
from forebay.datasets.reading.inputs import convert

ROWS = 300
ENDINGS = {"parquet": "parquet", "arrow": "arrow", "npy": "npy", "images": "png", "pt2": "pt2"}
COLUMNS = {
    "parquet": {"x": ("x",), "text": ("text",), "list": ("list",)}, "arrow": {"x": ("x",), "text": ("text",), "list": ("list",)},
    "npy": {"x": ("array",)}, "images": {"x": ("image",)},
}  # fmt: skip
_VECTOR = {"x": {"dtype": "float64", "shape": []}}
_TABLE = _VECTOR | {"text": {"dtype": "str"}, "list": {"dtype": "float64", "shape": [-1]}}
SIGNATURES = {
    "parquet": Signature.parse(_TABLE), "arrow": Signature.parse(_TABLE), "npy": Signature.parse(_VECTOR),
    "images": Signature.parse({"x": {"dtype": "uint8", "shape": [-1, -1, 3]}}),
}  # fmt: skip


def good_files(folder: Path, pt2: Path) -> dict[str, list[bytes]]:
    """Some good files of each format."""
    numbers = np.random.default_rng(0).standard_normal(ROWS)
    texts, lists = [f"row {i}" for i in range(ROWS)], [[float(i)] * (i % 4) for i in range(ROWS)]
    table = pa.table({"x": numbers, "text": texts, "list": lists})
    found: dict[str, list[bytes]] = {name: [] for name in ENDINGS}
    for options in (
        {},
        {"compression": "none"},
        {"compression": "zstd", "use_dictionary": False, "data_page_version": "2.0"},
    ):
        pq.write_table(table, folder / "good", row_group_size=100, **options)
        found["parquet"].append((folder / "good").read_bytes())
    for compression in (None, "zstd", "lz4"):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            writer.write_table(table, max_chunksize=100)
        found["arrow"].append(sink.getvalue().to_pybytes())
    np.save(folder / "good.npy", numbers)
    found["npy"].append((folder / "good.npy").read_bytes())
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 50, 3), np.uint8))
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        sink = io.BytesIO()
        picture.save(sink, kind)
        found["images"].append(sink.getvalue())
    found["pt2"].append(pt2.read_bytes())
    return found


def damaged(good: list[bytes], number: int) -> bytes:
    """One of the files, cut off or with some bytes changed: anywhere, or where headers and footers are."""
    chance = random.Random(number)
    data = bytearray(chance.choice(good))
    if chance.random() < 0.1:
        return bytes(data[: chance.randrange(len(data))])
    edge = min(len(data), 1500)
    for _ in range(chance.choice((1, 1, 2, 5, 40))):
        where = chance.choice(
            (chance.randrange(len(data)), chance.randrange(edge), len(data) - 1 - chance.randrange(edge))
        )
        data[where] = chance.choice(
            (0, 0xFF, 0x7F, 0x80, data[where] ^ (1 << chance.randrange(8)), chance.randrange(256))
        )
    return bytes(data)


def damaged_archive(good: bytes, number: int) -> bytes:
    """A .pt2 archive whose checksums hold: some characters, or numbers, of its program are others."""
    chance = random.Random(number)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice([name for name in entries if name.endswith(".json")])
    text = bytearray(entries[name])
    for _ in range(chance.choice((1, 1, 3))):
        at = chance.randrange(len(text))
        text[at] = chance.choice(b'0123456789-,:[]{}"abnefls') if chance.random() < 0.7 else chance.randrange(256)
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for entry, content in (entries | {name: bytes(text)}).items():
            archive.writestr(entry, content)
    return sink.getvalue()


def submit(format: str, path: Path) -> str:
    """What a client makes of a file at submit."""
    try:
        if format == "pt2":
            read_pt2_signature(path)
        else:
            request = _request(format, path)
            check_file(request, SIGNATURES[format], request.files[0])
            check_rows(request, SIGNATURES[format], request.files[0])
    except ForebayError as error:
        return "refused" if path.name in str(error) else f"not named: {error}"
    return "accepted"


def run(format: str, path: Path) -> str:
    """What a worker's child makes of a file that was accepted: all of its rows, or the program loaded."""
    try:
        if format == "pt2":
            from support.hostile_archives import load  # torch

            load(path)
        else:
            request = _request(format, path)
            source, columns = get_source(format), [name for names in request.columns.values() for name in names]
            for block in source.layout(request.files[0], columns, 8):
                for chunk in source.read(request.files[0], block.first, block.last, columns):
                    convert(chunk, request.columns, SIGNATURES[format], format)
    except ForebayError as error:
        return "refused" if format == "pt2" or path.name in str(error) else f"not named: {error}"
    except MemoryError:
        return "memory"
    return "ran"


def _request(format: str, path: Path) -> BatchRequest:
    return BatchRequest(
        files=(InputFile(str(path), path.stat().st_size),), output="/none", format=format, columns=COLUMNS[format]
    )


def _bound() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (2 * MEMORY_BYTES, 2 * MEMORY_BYTES))


class Sweep:
    """Damaged files through a client, this process, and through a worker's child that may die."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool = _pool()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.deaths: list[str] = []
        self.grown = 0
        self._before = psutil.Process().memory_info().rss

    def take(self, format: str, number: int, data: bytes) -> None:
        path = self._folder / f"{number}.{ENDINGS[format]}"
        path.write_bytes(data)
        outcome = submit(format, path)
        if outcome == "accepted":
            try:
                outcome = self._pool.submit(run, format, path).result(300)
            except BrokenProcessPool:
                outcome, self._pool = "died", _pool()
                self.deaths.append(path.name)
        self.counts[format, outcome] += 1
        self.grown = max(self.grown, psutil.Process().memory_info().rss - self._before)
        if outcome != "died":
            path.unlink()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __str__(self) -> str:
        told = {f"{format} {outcome}": count for (format, outcome), count in sorted(self.counts.items())}
        return json.dumps(told | {"client grew by MiB": self.grown >> 20})


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), _bound)


def files(good: dict[str, list[bytes]], each: int) -> Iterator[tuple[str, int, bytes]]:
    """So many of each format."""
    makers: dict[str, Callable[[int], bytes]] = {
        format: (lambda number, whole=whole: damaged(whole, number)) for format, whole in good.items()
    }
    for format, make in makers.items():
        for number in range(each):
            if format == "pt2" and number % 2:
                yield format, number, damaged_archive(good[format][0], number)
            else:
                yield format, number, make(number)
