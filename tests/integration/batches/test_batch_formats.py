"""Every format of input, from submit to output, and what is refused at submit."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from msgspec.structs import asdict
from PIL import Image

from forebay import InvalidInput, JobFailed
from forebay.producer.requests import batch as batch_requests
from forebay.storage.batches.views import BatchViews
from support.datasets import ABORTING, errors_of, faults_of, rows_of, vectors, write_parquet
from support.worker_stack import WorkerStack

VECTOR = {"x": {"dtype": "float32", "shape": [2]}}
TEXT = {"text": {"dtype": "str"}}
TOTAL = {"total": {"dtype": "float32", "shape": []}}


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    """One worker, and three models: of vectors, of texts, of images."""
    stack = open_stack()
    stack.worker()
    stack.model("Total", "total", inputs=VECTOR, outputs=TOTAL)
    stack.model("Shout", "shout", inputs=TEXT, max_batch_size=4)
    stack.model("Brightness", "brightness", inputs={"image": {"dtype": "uint8", "shape": [-1, -1, 3]}})
    return stack


def run(stack: WorkerStack, model: str, data: Path | str, out: Path, **more: Any) -> Any:
    """The manifest of a batch that has succeeded and stood the audit."""
    job = stack.client.batch(model, data, out, **more)
    assert job.wait(120), job.info()
    manifest = job.result(120)
    assert faults_of(job) == []
    return manifest


def test_csv_columns_make_a_vector_and_a_bad_value_is_an_error(stack: WorkerStack, tmp_path: Path) -> None:
    lines = ["id,a,b", *(f"00{i},{i},{i}.5" for i in range(300))]
    lines[101] = "00100,oops,1"
    lines[201] = "00200,1"
    (tmp_path / "in.csv").write_text("\n".join(lines) + "\n")
    manifest = run(stack, "total", tmp_path / "in.csv", tmp_path / "out", columns=["a", "b"], keep="id", shard_rows=50)
    assert asdict(manifest.counts) == {"total": 300, "completed": 298, "failed": 2}
    assert len(manifest.parts) > 3
    assert rows_of(tmp_path / "out") == [
        {"id": f"00{i}", "total": 2 * i + 0.5} for i in range(300) if i not in (100, 200)
    ]
    errors = errors_of(tmp_path / "out")
    assert "'oops' is not a number" in errors[0]["message"]
    assert "the line has 2 values, the header 3" in errors[1]["message"]
    text = (tmp_path / "in.csv").read_bytes()
    assert [text[error["offset"] :].split(b",")[0] for error in errors] == [b"00100", b"00200"]


def test_json_lines_keep_types_and_texts_of_any_length_come_back_in_order(stack: WorkerStack, tmp_path: Path) -> None:
    texts = [f"{'long ' * (i % 7)}{i}" for i in range(120)]
    records = [{"n": i, "text": text} for i, text in enumerate(texts)]
    lines = [json.dumps(record) for record in records]
    lines[5] = lines[5][:-4]
    lines[7] = json.dumps({"n": 7})
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    run(stack, "shout", tmp_path / "in.jsonl", tmp_path / "out", columns="text", keep="n", shard_rows=40)
    found = rows_of(tmp_path / "out")
    assert found == [{"n": i, "output": text.upper()} for i, text in enumerate(texts) if i not in (5, 7)]
    messages = [error["message"] for error in errors_of(tmp_path / "out")]
    assert "not JSON" in messages[0]
    assert "missing" in messages[1]


def test_an_unpleasant_csv_comes_back_row_by_row_from_shards_of_any_size(stack: WorkerStack, tmp_path: Path) -> None:
    texts = [
        '5" pipe',
        "a\nb",
        "line\r\nline",
        ' "x',
        "é,;",
        'the "valve"',
        " ",
        *(f"plain {i}" for i in range(60)),
        "c\rd",
    ]
    data = "\ufeffid,text\r\n" + "".join(
        f"{i},{text if i in (0, 3) else chr(34) + text.replace(chr(34), 2 * chr(34)) + chr(34)}{end}"
        for (i, text), end in zip(enumerate(texts), 17 * ["\n", "\r\n\r\n", "\r", "\n\n"], strict=True)
    )
    (tmp_path / "in.csv").write_bytes(data.encode())
    manifest = run(stack, "shout", tmp_path / "in.csv", tmp_path / "out", columns="text", keep="id", shard_rows=7)
    assert [file.rows for file in manifest.parts] == [7] * 9 + [5]
    assert rows_of(tmp_path / "out") == [{"id": str(i), "output": text.upper()} for i, text in enumerate(texts)]


def test_a_file_that_is_damaged_far_behind_fails_its_batch_by_name_and_at_once(
    stack: WorkerStack, tmp_path: Path
) -> None:
    texts = [20_000 * "x" for _ in range(300)]  # more than is read to count it
    whole = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-9])
    job = stack.client.batch("shout", tmp_path / "cut.jsonl.gz", tmp_path / "out", columns="text")
    with pytest.raises(JobFailed, match=r"cut\.jsonl\.gz' cannot be read as a gzip file"):
        job.result(120)
    [shard] = BatchViews(stack.ledger).shards(job.id).shards
    assert (shard.attempt, shard.error) == (1, "InvalidInput")
    text = "\n".join(["text", *texts, '"never closed', "the end"])
    (tmp_path / "quote.csv").write_text(text)
    job = stack.client.batch("shout", tmp_path / "quote.csv", tmp_path / "out2", columns="text")
    with pytest.raises(JobFailed, match=rf"quote\.csv': the quote at byte {text.index(chr(34))} is not closed"):
        job.result(120)


def test_openais_form_comes_back_in_openais_form(stack: WorkerStack, tmp_path: Path) -> None:
    requests = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": text}}
        for i, text in enumerate(["one", "two", 3, "four"])
    ]
    lines = [json.dumps(request) for request in requests]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, "{}", "nonsense"]) + "\n")
    manifest = run(stack, "shout", tmp_path / "in.jsonl", tmp_path / "out")
    assert manifest.format == "openai"
    assert asdict(manifest.counts) == {"total": 6, "completed": 3, "failed": 3}
    [part], [errors] = manifest.parts, manifest.errors
    results = [json.loads(line) for line in (tmp_path / "out" / part.name).read_text().splitlines()]
    assert [(r["custom_id"], r["response"]["status_code"], r["response"]["body"]["output"], r["error"]) for r in results] == [
        ("r0", 200, "ONE", None), ("r1", 200, "TWO", None), ("r3", 200, "FOUR", None),
    ]  # fmt: skip
    failed = [json.loads(line) for line in (tmp_path / "out" / errors.name).read_text().splitlines()]
    assert [(f["custom_id"], f["response"], f["error"]["code"]) for f in failed] == [
        ("r2", None, "InvalidInput"), (None, None, "InvalidInput"), (None, None, "InvalidInput"),
    ]  # fmt: skip
    assert len({line["id"] for line in [*results, *failed]}) == 6
    [kind] = BatchViews(stack.ledger).errors(manifest.batch).rows
    assert kind.samples[0].where == "custom_id r2"
    assert [sample.where.partition(" ")[0] for sample in kind.samples] == ["custom_id", "offset", "offset"]


def test_npy_rows_are_read_where_they_lie(stack: WorkerStack, tmp_path: Path) -> None:
    rows = np.arange(500, dtype=np.float64).reshape(250, 2)
    np.save(tmp_path / "in.npy", rows)
    manifest = run(stack, "total", tmp_path / "in.npy", tmp_path / "out", shard_rows=60)
    assert len(manifest.parts) == 5
    assert rows_of(tmp_path / "out") == [{"row": i, "total": float(rows[i].sum())} for i in range(250)]


@pytest.mark.parametrize("compression", ["uncompressed", "lz4"])
def test_feather_is_read_batch_by_batch(stack: WorkerStack, tmp_path: Path, compression: str) -> None:
    feather.write_feather(vectors(300, width=2), str(tmp_path / "in.feather"), compression=compression, chunksize=70)
    run(stack, "total", tmp_path / "in.feather", tmp_path / "out", columns="x", keep=["id"])
    assert [row["id"] for row in rows_of(tmp_path / "out")] == list(range(300))


def test_a_folder_of_images_is_a_row_each_and_a_broken_one_an_error(stack: WorkerStack, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (4 + i, 3), (i, i, i)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"no image")
    run(stack, "brightness", folder, tmp_path / "out")
    found = rows_of(tmp_path / "out")
    assert [(Path(row["path"]).name, row["output"]) for row in found] == [
        (f"{i}.png", float(i)) for i in (0, 1, 2, 4, 5)
    ]
    [error] = errors_of(tmp_path / "out")
    assert Path(error["file"]).name == "3.png"


def test_a_url_is_read_and_written_through_fsspec(stack: WorkerStack, tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "in", [vectors(20, width=2)])
    run(stack, "total", f"file://{data}/000.parquet", f"file://{tmp_path}/out", columns="x")
    assert len(rows_of(tmp_path / "out")) == 20


def test_files_of_different_number_types_all_go_in(stack: WorkerStack, tmp_path: Path) -> None:
    tables = [pa.table({"x": pa.array([[1, 2]], pa.list_(kind))}) for kind in (pa.int32(), pa.float64(), pa.float32())]
    data = write_parquet(tmp_path / "in", tables)
    run(stack, "total", data, tmp_path / "out", columns="x")
    assert [row["total"] for row in rows_of(tmp_path / "out")] == [3.0, 3.0, 3.0]


def test_kept_columns_of_other_types_and_undeclared_outputs_make_one_data_set(
    stack: WorkerStack, tmp_path: Path
) -> None:
    stack.model("Moods", "moods")
    ids = [pa.array([1, 2, 3], pa.int32()), pa.array([3_000_000_000, 5, 6]), pa.nulls(3)]
    data = write_parquet(
        tmp_path / "in", [pa.table({"n": range(3 * i, 3 * i + 3), "id": column}) for i, column in enumerate(ids)]
    )
    run(stack, "moods", data, tmp_path / "out", columns="n", keep="id", shard_rows=1)
    found = ds.dataset(sorted((tmp_path / "out").glob("*.parquet"))).to_table()
    assert found.to_pylist() == rows_of(tmp_path / "out")
    assert found.column("id").to_pylist() == [1, 2, 3, 3_000_000_000, 5, 6, None, None, None]
    assert sorted(found.column_names) == ["id", "mood", "n"]
    assert len({pq.read_schema(part).to_string() for part in (tmp_path / "out").glob("*.parquet")}) == 1


REFUSED = {
    "no such file": ("total", "nothing/*.parquet", {}, r"no file matches '.*nothing/\*\.parquet'"),
    "no such column": (
        "total",
        "in/000.parquet",
        {"columns": "y"},
        r"000\.parquet'.*no column 'y'; there are 'x', 'id'",
    ),
    "wrong width": (
        "total",
        "wide/000.parquet",
        {"columns": "x"},
        r"'x': expected float32 of shape \[2\], found fixed",
    ),
    "wrong type": ("shout", "in/000.parquet", {"columns": "x"}, r"column 'x': expected str, found fixed_size_list"),
    "not parquet": ("total", "broken.parquet", {"columns": "x"}, r"broken\.parquet' cannot be read as Parquet"),
    "no rows": ("total", "empty.parquet", {"columns": "x"}, r"holds no rows: '.*empty\.parquet'"),
    "kept as output": (
        "total",
        "in/000.parquet",
        {"columns": "x", "keep": "total"},
        r"no column 'total'|keep: 'total'",
    ),
    "kept of two types": (
        "total",
        ["in/000.parquet", "words/000.parquet"],
        {"columns": "x", "keep": "id"},
        r"column 'id' is string in '.*words/000\.parquet' but int64 in '.*in/000\.parquet'",
    ),
    "which column": ("shout", "in/000.parquet", {}, r"name the column that goes into the model"),
    "mixed formats": ("total", ["in/000.parquet", "a.csv"], {"columns": "x"}, r"mixes formats"),
    "no known ending": ("total", "a.xyz", {"columns": "x"}, r"a\.xyz'.*name the format"),
    "strange format": ("total", "in/000.parquet", {"format": "orc"}, r"format 'orc' is not one of parquet, arrow"),
    "strange number": (
        "total",
        "in/000.parquet",
        {"columns": "x", "max_errors": 1.5},
        r"max_errors: expected .* got 1\.5",
    ),
    "strange share": (
        "total",
        "in/000.parquet",
        {"columns": "x", "max_error_share": 1.5},
        r"max_error_share: .* from 0 to 1, got 1\.5",
    ),
    "no rows in a shard": (
        "total",
        "in/000.parquet",
        {"columns": "x", "shard_rows": 0},
        r"shard_rows: .* from 1, got 0",
    ),
    "no numbers": (
        "total",
        "words.csv",
        {"columns": ["a", "b"]},
        r"words\.csv'.*'x' is not a number.*none of the first",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_at_submit_and_nothing_is_left(
    stack: WorkerStack, tmp_path: Path, case: str
) -> None:
    model, given, more, message = REFUSED[case]
    write_parquet(tmp_path / "in", [vectors(5, width=2)])
    write_parquet(tmp_path / "wide", [vectors(5, width=3)])
    write_parquet(tmp_path / "words", [vectors(5, width=2).set_column(1, "id", pa.array(list("abcde")))])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 or not")
    write_parquet(tmp_path / "none", [vectors(0, width=2)])
    (tmp_path / "none" / "000.parquet").rename(tmp_path / "empty.parquet")
    (tmp_path / "a.csv").write_text("x\n1\n")
    (tmp_path / "a.xyz").write_text("x\n1\n")
    (tmp_path / "words.csv").write_text("a,b\nx,y\nz,w\n")
    before = len(stack.client.jobs(kind="batch", limit=1000))
    data = [str(tmp_path / one) for one in ([given] if isinstance(given, str) else given)]
    with pytest.raises(InvalidInput, match=message):
        stack.client.batch(model, data, tmp_path / "out", **more)
    assert len(stack.client.jobs(kind="batch", limit=1000)) == before
    assert not (tmp_path / "out").exists()


TEXTS = ["plain", 'a "quoted" word', "two\nlines", "comma, and ünïcode", "", "null"]


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
def test_results_come_in_the_form_that_was_asked_for(stack: WorkerStack, tmp_path: Path, form: str) -> None:
    table = pa.table({
        "n": [2**53 + 1, *range(1, 60)], "text": [TEXTS[i % 6] for i in range(60)],
        "maybe": pa.array([None if i % 3 else i for i in range(60)], pa.int64()), "a": np.arange(60, dtype="f4"),
        "b": [float("nan"), *[0.5] * 59],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "in.parquet")
    run(
        stack, "total", tmp_path / "in.parquet", tmp_path / "out", columns=["a", "b"], keep=["n", "text", "maybe"],
        shard_rows=20, output_format=form,
    )  # fmt: skip
    parts = sorted((tmp_path / "out").glob(f"*.{form}"))
    assert len(parts) == 3
    if form == "csv":
        nulls = {"dtype": {"maybe": "Int64"}, "keep_default_na": False, "na_values": {"maybe": [""], "total": ["nan"]}}
        frames = [pd.read_csv(part, **nulls) for part in parts]
        found = pa.Table.from_pandas(pd.concat(frames), preserve_index=False).to_pylist()
    elif form == "jsonl":
        found = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    else:
        found = rows_of(tmp_path / "out")
    assert [row["n"] for row in found] == table["n"].to_pylist()
    assert [row["text"] for row in found] == table["text"].to_pylist()
    assert [row["maybe"] for row in found] == table["maybe"].to_pylist()
    assert [row["total"] for row in found[1:]] == [i + 0.5 for i in range(1, 60)]


def test_the_audit_finds_a_row_taken_out_of_a_csv_part(stack: WorkerStack, tmp_path: Path) -> None:
    write_parquet(tmp_path / "in", [vectors(10, 2)])
    job = stack.client.batch("total", tmp_path / "in", tmp_path / "out", columns="x", output_format="csv")
    assert job.wait(120)
    assert faults_of(job) == []
    [part] = (tmp_path / "out").glob("*.csv")
    part.write_text("".join(part.read_text().splitlines(keepends=True)[:-1]))
    assert faults_of(job) == [f"{part.name}: its content is not what was written; it holds 9 rows, 10 were written"]


def test_what_csv_cannot_hold_is_refused_at_submit(stack: WorkerStack, tmp_path: Path) -> None:
    write_parquet(tmp_path / "in", [vectors(3, 2)])
    stack.model("Total", "wide", inputs=VECTOR, outputs={"y": {"dtype": "float32", "shape": [3]}})
    with pytest.raises(InvalidInput, match=r"column 'y' is .*list.*, which CSV cannot hold; write parquet or jsonl"):
        stack.client.batch("wide", tmp_path / "in", tmp_path / "out", columns="x", output_format="csv")
    with pytest.raises(InvalidInput, match="output_format"):
        stack.client.batch("total", tmp_path / "in", tmp_path / "out", columns="x", output_format="excel")
    assert not (tmp_path / "out").exists()


def test_a_file_that_ends_its_reader_is_named_at_submit_and_by_the_planning_child_which_lives(
    stack: WorkerStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{name}.parquet" for name in ("first", "aborting", "last")]
    for file in files:
        pq.write_table(pa.table({"x": ["a", "b"]}), file)
    files[1].write_bytes(ABORTING)
    said = r"aborting\.parquet' cannot be read as parquet: it ends the process that reads it \(SIGABRT\)"
    with pytest.raises(InvalidInput, match=said):
        stack.client.batch("shout", files[1], tmp_path / "refused", columns="x")
    monkeypatch.setattr(batch_requests, "CHECK_S", -1.0)  # no time for any but the first and the last
    job = stack.client.batch("shout", files, tmp_path / "out", columns="x")
    with pytest.raises(JobFailed, match=said):
        job.result(120)
    run(stack, "shout", files[0], tmp_path / "next", columns="x")
    assert stack.workers[0].said().count("event=child_ready") == 1, "no child has died"
