"""A damaged file of a typed format is refused in words that name it, whatever its decoder raises."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forebay.contract.errors import InvalidInput
from forebay.datasets.formats.source import get_source
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
