"""A damaged file of a typed format is refused in words that name it, whatever its decoder raises."""

import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import InputFile
from forebay.datasets.formats import isolated
from forebay.datasets.formats.source import get_source
from support.datasets import ABORTING, BOMB
from support.parts import files_of

NUMBERS = np.random.default_rng(0).standard_normal(5000)


def write_arrow(path: Path) -> None:
    table = pa.table({"array": NUMBERS})
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, max_chunksize=900)


WRITERS: dict[str, Callable[[Path], None]] = {
    "parquet": lambda path: pq.write_table(pa.table({"array": NUMBERS}), path, row_group_size=1000),
    "arrow": write_arrow,
    "npy": lambda path: np.save(path, NUMBERS),
    "npz": lambda path: np.savez_compressed(path, array=NUMBERS),
}


@pytest.mark.parametrize("format", WRITERS)
def test_whatever_is_wrong_with_a_file_is_told_with_its_name(tmp_path: Path, format: str) -> None:
    path, chance = tmp_path / f"a.{format}", random.Random(0)
    WRITERS[format](path)
    whole = path.read_bytes()
    refused: list[str] = []
    for attempt in range(150):
        data = bytearray(whole)
        if attempt % 3 == 0:
            data = data[: chance.randrange(len(data))]
        else:
            for _ in range(chance.choice([1, 5, 50])):
                data[chance.randrange(len(data) if attempt % 2 else 200)] = chance.randrange(256)
        path.write_bytes(data)
        try:
            read_all(path, format)
        except InvalidInput as error:
            refused.append(str(error))
        except MemoryError:  # a length that was damaged
            pass
    assert len(refused) > 50
    assert all(path.name in reason for reason in refused)


def read_all(path: Path, format: str) -> None:
    [file] = files_of(path)
    source = get_source(format)
    source.sample(file)
    for block in source.layout(file, ["array"], 8):
        for chunk in source.read(file, block.first, block.last, ["array"]):
            chunk.columns["array"].to_pylist()


def test_a_file_that_ends_the_process_that_reads_it_is_refused_with_its_name_and_the_next_one_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "bad.parquet").write_bytes(ABORTING)
    WRITERS["parquet"](tmp_path / "good.parquet")
    [bad], [good] = files_of(tmp_path / "bad.parquet"), files_of(tmp_path / "good.parquet")
    source = get_source("parquet")
    with pytest.raises(InvalidInput, match=r"bad\.parquet.*ends the process that reads it \(SIGABRT\)"):
        source.layout(bad, ["x"], 8)
    assert sum(block.rows for block in source.layout(good, ["array"], 8)) == 5000


def test_a_file_that_wants_more_memory_than_there_is_for_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.arrow"
    write_arrow(path)
    length = (900 * 8).to_bytes(8, "little")  # of a buffer when it is decompressed
    whole = path.read_bytes()
    assert whole.count(length) >= 5
    path.write_bytes(whole.replace(length, (3 << 30).to_bytes(8, "little")))
    with pytest.raises(InvalidInput, match=r"bomb\.arrow.*takes more than 2048 MiB of memory to read"):
        get_source("arrow").sample(*files_of(path))


def test_a_few_bytes_that_decode_to_gigabytes_are_refused_before_anything_is_submitted(tmp_path: Path) -> None:
    (tmp_path / "bomb.parquet").write_bytes(BOMB)
    [file] = files_of(tmp_path / "bomb.parquet")
    source = get_source("parquet")
    assert [block.rows for block in source.layout(file, ["x"], 8)] == [1]
    with pytest.raises(InvalidInput, match=r"bomb\.parquet.*takes more than 2048 MiB of memory to read"):
        source.head(file, 1, ["x"], 1)


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: Any) -> None:
    os.mkfifo(tmp_path / "endless.parquet")
    monkeypatch.setattr(isolated, "ANSWER_S", 0.01)
    with pytest.raises(InvalidInput, match=r"endless\.parquet.*takes more than 0\.01 s"):
        get_source("parquet").sample(InputFile(str(tmp_path / "endless.parquet"), 1000))


def test_a_process_that_was_forked_asks_one_of_its_own(tmp_path: Path) -> None:
    WRITERS["parquet"](tmp_path / "good.parquet")
    [file] = files_of(tmp_path / "good.parquet")
    program = (
        "import os\nfrom forebay.datasets.formats.source import get_source\n"
        "from forebay.contract.requests.batch import InputFile\n"
        f"file = InputFile({file.path!r}, {file.size})\nsource = get_source('parquet')\nassert not source.sample(file).empty\n"
        "pid = os.fork()\nassert not source.sample(file).empty\n"
        "if pid: raise SystemExit(os.waitpid(pid, 0)[1])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("shape", "words"),
    [("(1152921504606846976,)", "more bytes"), ("(4, 4611686018427387904)", "more bytes"), ("(-5,)", "more bytes")],
)
@pytest.mark.parametrize("format", ["npy", "npz"])
def test_an_array_that_announces_more_than_its_file_holds_is_refused(
    tmp_path: Path, format: str, shape: str, words: str
) -> None:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)
    path = tmp_path / f"a.{format}"
    if format == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("array.npy", data)
    else:
        path.write_bytes(data)
    with pytest.raises(InvalidInput, match=words):
        get_source(format).sample(*files_of(path))
